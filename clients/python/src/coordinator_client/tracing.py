"""The trace goes on: a handler runs in a span that is a child of the change's, if OpenTelemetry is
installed. Without it nothing happens here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import trace
    from opentelemetry.trace import Link, SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # pragma: no cover
    trace = None  # type: ignore[assignment]

from .messages import Message
from .subjects import CHANGES_PREFIX

_TEMPLATES = {
    True: "gitea.changes.{kind}.{owner}.{repo}.{number}",
    False: "gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
}


@contextmanager
def handling(message: Message, durable: str, issue: str) -> Iterator[None]:
    """The span of one attempt. An exception that leaves it is recorded in it."""
    if trace is None:
        yield
        return
    carrier = {} if message.traceparent is None else {"traceparent": message.traceparent}
    parent = TraceContextTextMapPropagator().extract(carrier)
    origin = trace.get_current_span(parent).get_span_context()
    template = _TEMPLATES[message.subject.startswith(CHANGES_PREFIX + ".")]
    attributes: dict[str, Any] = {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.subject,
        "messaging.destination.template": template,
        "messaging.message.id": message.id,
        "messaging.consumer.group.name": durable,
        "gitea.issue.ref": issue,
    }
    with trace.get_tracer("coordinator_client").start_as_current_span(
        f"process {template}",
        context=parent,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=[Link(origin)] if origin.is_valid else [],
    ):
        yield
