"""The durable consumer: found, checked, created or put right, and asked how it stands."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Optional, Union

import nats.errors
from nats.aio.client import Client

from . import subjects, timestamps
from .errors import ConsumerError
from .hand import Standing

log = logging.getLogger("coordinator_client")

_NO_CONSUMER = 10014
_NO_STREAM = 10059
_NANOS = 1_000_000_000
#: Seconds that an answer may take. While a cluster elects a leader there is none.
_PATIENCE = 1.0

#: Where a new consumer begins: with all that the stream holds, with what comes from now on, at a
#: time, or at a sequence of the stream.
Start = Union[str, datetime, int]


class NotNow(Exception):
    """The broker cannot do it now. It is asked again. `silent`: it did not answer at all."""

    def __init__(self, text: str, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent


@dataclass(frozen=True)
class Wanted:
    """What the consumer should be like."""

    stream: str
    durable: str
    subjects: tuple[str, ...]
    start: Start
    ack_wait: float
    ahead: int


@dataclass(frozen=True)
class Found:
    """What the consumer is like."""

    standing: Standing
    ack_wait: float
    #: Most messages that the broker gives out before the first of them is acked.
    most_unacked: int
    #: Limits of one request, 0 for none.
    most_batch: int
    most_expires: float
    #: When the consumer was created, as the broker writes it.
    created_at: str
    #: The stream is another one than at the last time.
    new_stream: bool = False


async def _ask(client: Client, subject: str, question: Any, timeout: float) -> dict[str, Any]:
    payload = b"" if question is None else json.dumps(question).encode()
    try:
        answer = await client.request(f"$JS.API.{subject}", payload, timeout=timeout)
        found = json.loads(answer.data)
    except nats.errors.NoRespondersError:
        raise NotNow("JetStream does not answer") from None
    except nats.errors.TimeoutError:
        raise NotNow("JetStream is silent", silent=True) from None
    except (nats.errors.Error, ValueError) as error:
        raise NotNow(type(error).__name__) from None
    if not isinstance(found, dict):
        raise NotNow("the answer is no object")
    return found


def _refusal(answer: dict[str, Any]) -> Optional[tuple[int, str]]:
    error = answer.get("error")
    if error is None:
        return None
    return int(error.get("err_code", 0)), str(error.get("description", ""))[:200]


async def look(client: Client, wanted: Wanted, timeout: float = 2.0) -> Optional[Found]:
    """How the consumer stands; `None` if there is none. Raises `NotNow`."""
    question = f"CONSUMER.INFO.{wanted.stream}.{wanted.durable}"
    answer = await _ask(client, question, None, timeout)
    refusal = _refusal(answer)
    if refusal is None:
        return _found(answer)
    if refusal[0] == _NO_CONSUMER:
        return None
    if refusal[0] == _NO_STREAM:
        raise NotNow(f"there is no stream {wanted.stream} yet")
    raise NotNow(refusal[1])


async def ensure(client: Client, wanted: Wanted, former: Optional[Found], resume_at: int) -> Found:
    """The consumer, which is created if there is none. If there was a `former` one of that name,
    it goes on at the sequence `resume_at`, or at the beginning if the stream is another one.

    Raises `NotNow`, and `ConsumerError` if it can never be as wanted.
    """
    question = f"CONSUMER.INFO.{wanted.stream}.{wanted.durable}"
    answer = await _ask(client, question, None, _PATIENCE)
    refusal = _refusal(answer)
    if refusal is not None and refusal[0] == _NO_STREAM:
        raise NotNow(f"there is no stream {wanted.stream} yet")
    if refusal is not None and refusal[0] != _NO_CONSUMER:
        raise NotNow(refusal[1])
    new_stream = False
    if former is not None and (refusal is not None or answer.get("created") != former.created_at):
        new_stream = await _is_newer(client, wanted.stream, former.created_at)
    if refusal is not None:
        again = former is not None and not new_stream
        found = await _create(client, wanted, resume_at if again else None, former is not None)
    else:
        config = answer["config"]
        _check(wanted, config)
        given = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
        missing = [s for s in wanted.subjects if not any(subjects.covers(g, s) for g in given)]
        if missing:
            await _widen(client, wanted, config, missing)
        found = _found(answer)
    return replace(found, new_stream=new_stream)


async def _is_newer(client: Client, stream: str, than: str) -> bool:
    """Whether the stream was created after that time. Raises `NotNow` where that is not known: in a
    new stream the consumer must not go on where it was in the former one."""
    try:
        answer = await _ask(client, f"STREAM.INFO.{stream}", None, _PATIENCE)
    except NotNow as error:
        raise NotNow(
            f"whether {stream} is the same stream as before is not known ({error}); the user has "
            f"to be allowed $JS.API.STREAM.INFO.{stream}",
            error.silent,
        ) from None
    refusal = _refusal(answer)
    if refusal is not None:
        raise NotNow(refusal[1])
    try:
        return timestamps.parse(str(answer.get("created"))) > timestamps.parse(than)
    except ValueError:
        raise NotNow("the answer of JetStream is no info") from None


def _check(wanted: Wanted, config: dict[str, Any]) -> None:
    name = f"the consumer {wanted.durable} of {wanted.stream}"
    if config.get("deliver_subject"):
        raise ConsumerError(f"{name} pushes its messages; delete it, or take another durable name")
    if config.get("ack_policy") != "explicit":
        raise ConsumerError(f"{name} wants no ack of each message; delete it, or take another name")
    if config.get("headers_only"):
        raise ConsumerError(f"{name} leaves the payloads out; set its headers_only to false")
    if config.get("max_deliver", -1) > 0:
        raise ConsumerError(
            f"{name} gives messages up after {config['max_deliver']} deliveries; "
            "set its max_deliver to -1"
        )


async def _create(
    client: Client, wanted: Wanted, resume_at: Optional[int], was_there: bool
) -> Found:
    config: dict[str, Any] = {
        "name": wanted.durable,
        "durable_name": wanted.durable,
        "ack_policy": "explicit",
        "ack_wait": int(wanted.ack_wait * _NANOS),
        "max_deliver": -1,
        "max_ack_pending": wanted.ahead,
        "replay_policy": "instant",
        "filter_subjects": list(wanted.subjects),
    }
    if resume_at is not None:
        config.update(deliver_policy="by_start_sequence", opt_start_seq=max(1, resume_at))
    elif was_there:
        config.update(deliver_policy="all")
    elif isinstance(wanted.start, datetime):
        time = wanted.start.astimezone(timezone.utc).isoformat()
        config.update(deliver_policy="by_start_time", opt_start_time=time)
    elif isinstance(wanted.start, int):
        config.update(deliver_policy="by_start_sequence", opt_start_seq=max(1, wanted.start))
    else:
        config.update(deliver_policy=wanted.start)
    question = {"stream_name": wanted.stream, "config": config, "action": "create"}
    subject = f"CONSUMER.CREATE.{wanted.stream}.{wanted.durable}"
    try:
        answer = await _ask(client, subject, question, 5.0)
    except NotNow as error:
        raise NotNow(
            f"there is no consumer {wanted.durable}, and it cannot be created ({error}); if this "
            f"user may not, its admin does: coordinator create-streams --reader {wanted.durable}"
        ) from None
    refusal = _refusal(answer)
    if refusal is not None:
        raise ConsumerError(f"the broker refuses the consumer {wanted.durable}: {refusal[1]}")
    log.info("created the durable consumer %s of %s", wanted.durable, wanted.stream)
    return _found(answer)


async def _widen(
    client: Client, wanted: Wanted, config: dict[str, Any], missing: list[str]
) -> None:
    """Gives a consumer the wanted filters, where it has narrower ones."""
    changed = {k: v for k, v in config.items() if k not in ("filter_subject", "filter_subjects")}
    changed["filter_subjects"] = list(wanted.subjects)
    question = {"stream_name": wanted.stream, "config": changed, "action": "update"}
    why = f"the consumer {wanted.durable} does not deliver {', '.join(missing)}"
    subject = f"CONSUMER.CREATE.{wanted.stream}.{wanted.durable}"
    try:
        refusal = _refusal(await _ask(client, subject, question, 5.0))
    except NotNow as error:
        raise NotNow(f"{why}, and cannot be changed ({error})") from None
    if refusal is not None:
        raise ConsumerError(f"{why}, and the broker refuses to change it: {refusal[1]}")
    log.warning("the durable consumer %s has the filters of this program now", wanted.durable)


def _found(answer: dict[str, Any]) -> Found:
    config = answer["config"]
    most_unacked = config.get("max_ack_pending", 0)
    return Found(
        standing=Standing(
            delivered=answer["delivered"]["consumer_seq"],
            last_sequence=answer["delivered"]["stream_seq"],
            floor=answer["ack_floor"]["stream_seq"],
            unacked=answer["num_ack_pending"],
            undelivered=answer.get("num_pending", 0),
            waiting=answer.get("num_waiting", 0),
        ),
        ack_wait=config.get("ack_wait", 30 * _NANOS) / _NANOS,
        most_unacked=most_unacked if most_unacked > 0 else 10_000,
        most_batch=config.get("max_batch", 0),
        most_expires=config.get("max_expires", 0) / _NANOS,
        created_at=answer["created"],
    )
