from __future__ import annotations

import unittest

from coordinator_client import Again, Change, changes
from support import BrokerCase

try:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
except ImportError:
    raise unittest.SkipTest("OpenTelemetry's SDK is not installed") from None


class Tracing(BrokerCase):
    async def test_a_handlers_span_is_a_child_of_the_changes(self) -> None:
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        client = await self.make_stream()
        seen: list[tuple[int, str | None]] = []

        async def handle(change: Change) -> None:
            context = trace.get_current_span().get_span_context()
            seen.append((context.trace_id, change.message.traceparent))
            if len(seen) == 1:
                raise Again(0.05)

        self.start(changes(durable="traced", handler=handle))
        message_id = await self.publish(client, 1, 0)
        await self.until(lambda: len(seen) == 2, "it is handled")
        await self.until(lambda: len(exporter.get_finished_spans()) == 2, "the spans end")
        expected = int(message_id.split(":")[0].replace("-", ""), 16)
        for (trace_id, traceparent), span in zip(seen, exporter.get_finished_spans()):
            self.assertEqual(trace_id, expected)
            self.assertIn(f"{expected:032x}", traceparent or "")
            assert span.parent is not None and span.attributes is not None
            self.assertEqual(span.parent.span_id, 0x00F067AA0BA902B7)
            self.assertEqual(span.kind, trace.SpanKind.CONSUMER)
            self.assertEqual(span.attributes["gitea.issue.ref"], "acme/repo.1#1")
