"""One subscription at work: connects, as often as it takes, and keeps what is in hand meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from typing import Any, Optional, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from . import connection, consumer
from .connection import describe
from .consumer import Found, NotNow
from .errors import ConsumerError, SettingsError, UnreadableError, VersionError
from .hand import Hand, Held, Settled
from .messages import Message
from .session import Session
from .settings import Settings
from .sharing import Sharing
from .subscription import Subscription
from .workers import ACK, IN_PROGRESS, NAK, Workers, term

log = logging.getLogger("coordinator_client")

T = TypeVar("T")

#: Seconds between two attempts to connect, at most. A broker that is back is found within that.
_LONGEST_DELAY = 1.0
#: Seconds between two log lines about the same trouble.
_REPEAT_LOG = 30.0
#: Unanswered questions after which a connection is given up.
_MOST_SILENT = 3
#: Most sequences that are asked for again by name.
_MOST_ASKED_AGAIN = 10_000


class Subscriber:
    """Runs one subscription. Made and used within one event loop."""

    def __init__(self, subscription: Subscription, settings: Settings) -> None:
        self._subscription = subscription
        self._settings = settings
        self._hand = Hand()
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._client: Optional[Client] = None
        self._found: Optional[Found] = None
        self._workers: Optional[Workers] = None
        # Once all that was given out was here, what is missing later is lost on the way to us.
        self._ours = subscription.take_over
        self._sharing = Sharing()
        # Where to go on if the consumer has to be made anew.
        self._resume_at = 0
        self._fatal: Optional[BaseException] = None
        self._logged: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        #: Set while messages are asked for.
        self.consuming = asyncio.Event()

    def stop(self) -> None:
        """Asks it to end: handlers that run are finished, nothing new is begun."""
        self._stop.set()
        self._wake.set()

    async def run(self) -> None:
        """Until it is stopped. Raises `ConsumerError`, `SettingsError` or `VersionError` if it can
        never work."""
        await self._subscription.remember.open()
        self._workers = Workers(self._subscription, self._hand, self._tell, self._wake.set)
        alive = asyncio.ensure_future(self._keep_alive())
        work = asyncio.ensure_future(self._connections())
        tasks = [alive, work, *self._workers.tasks]
        try:
            # None of them ends by itself but `work`.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await work
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            self.stop()
            work.cancel()
            await self._finish()
            alive.cancel()
            await asyncio.gather(alive, work, return_exceptions=True)
            await self._subscription.remember.close()
        if self._fatal is not None:
            raise self._fatal

    async def _connections(self) -> None:
        """One connection after the other. Leaves the last one open when it is stopped."""
        failures = 0
        before = False
        while not self._stop.is_set() and self._fatal is None:
            try:
                client = await self._unless_stopped(connection.connect(self._settings))
                if client is None:
                    return
                if await self._session(client):
                    return
                failures, before = 0, True
            except SettingsError as error:
                # A file that was there once comes back.
                if not before:
                    raise
                self._trouble(f"cannot connect: {describe(error)}")
            except ConsumerError:
                raise
            except NotNow as error:
                before = True
                self._trouble(f"cannot consume: {error}")
            except Exception as error:
                self._trouble(f"cannot connect: {describe(error)}")
            failures += 1
            delay = min(_LONGEST_DELAY, 0.05 * 2 ** min(failures, 6)) * random.uniform(0.5, 1)
            await self._unless_stopped(asyncio.sleep(delay))

    async def _session(self, client: Client) -> bool:
        """Consumes over this connection. Returns whether it was stopped; then it is left open."""
        kept = False
        try:
            # A hand that is closed knows less.
            resume_at = self._hand.resume_at()
            self._resume_at = max(resume_at, 0 if self._hand.is_open else self._resume_at)
            self._hand.close()
            found = await self._ensure(client)
            if found is None:
                return False
            if found.new_stream:
                log.warning("%s is another stream than before", self._subscription.wanted.stream)
                self._hand.forget()
                self._resume_at = 0
            self._found = found
            self._client = client
            log.info("consuming %s as %s", found_name(self._subscription), self._settings.name)
            self._hand.look(found.standing)
            self._on_look()
            await self._tell_again(found)
            self._logged.clear()
            self.consuming.set()
            session = Session(
                client,
                self._subscription,
                self._hand,
                found,
                self._sharing,
                self._receive,
                self._on_look,
                self._wake,
                self._stop,
            )
            why = await session.run()
            # Also at a fatal error: what is in hand is given back over it.
            kept = not why
            if why:
                self._trouble(f"the session has ended: {why}")
            return kept
        finally:
            self.consuming.clear()
            if not kept:
                self._client = None
                closing = asyncio.ensure_future(connection.close(client))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def _ensure(self, client: Client) -> Optional[Found]:
        """The consumer, as soon as the broker can tell; nothing if it is stopped before."""
        silent = 0
        while not self._stop.is_set():
            try:
                return await consumer.ensure(
                    client, self._subscription.wanted, self._found, self._resume_at
                )
            except NotNow as error:
                silent = silent + 1 if error.silent else 0
                if client.is_closed or silent >= _MOST_SILENT:
                    raise
                self._trouble(f"cannot consume: {error}")
                await self._unless_stopped(asyncio.sleep(random.uniform(0.2, 0.4)))
        return None

    async def _tell_again(self, found: Found) -> None:
        """What the broker may not have heard, since the connection or it broke."""
        for settled in self._hand.untold():
            await self._tell(settled.reply, settled.told)
        for held in self._hand:
            await self._tell(held.reply, IN_PROGRESS)
        standing = found.standing
        if self._hand.is_open or not self._ours:
            return
        # A request that waits now is another program's. What is missing may be in its hands.
        if not self._sharing.is_alone or standing.waiting > 0:
            return
        wanted = self._subscription.wanted
        missing = self._hand.unknown(standing, _MOST_ASKED_AGAIN)
        for sequence in missing:
            # The broker looks at the sequence, and whether the count of the delivery can be right.
            # A message that is not out at all it ignores.
            reply = (
                f"$JS.ACK.{wanted.stream}.{wanted.durable}.1.{sequence}.{standing.delivered}.0.0"
            )
            await self._tell(reply, NAK)
        if missing:
            log.debug("asked again for what was lost on the way, of %d sequences", len(missing))

    def _on_look(self) -> None:
        """What the broker says may let more be handled, also while the hand is closed: another
        program may have come to the end of what was before."""
        self._ours = self._ours or self._hand.is_open
        if self._workers is not None:
            self._workers.schedule()

    def _receive(self, raw: Msg) -> None:
        try:
            delivered, sequence, count = _positions(raw.reply)
        except ValueError:
            log.warning("a message without a place in a stream is ignored")
            return
        headers = raw.headers or {}
        stream = self._subscription.wanted.stream
        message_id = headers.get("Nats-Msg-Id") or f"{stream}:{sequence}"
        if self._hand.count(sequence, count):
            log.info("deliveries are missing before %d; they are waited for", count)
            self._wake.set()
        settled = self._hand.settled(sequence, message_id)
        if settled is not None:
            self._soon(raw.reply, settled.told)
            return
        held = self._hand.get(sequence, message_id)
        if held is not None:
            held.reply, held.delivered = raw.reply, delivered
            return
        if self._stop.is_set():
            self._soon(raw.reply, NAK)
            return
        message = Message(
            subject=raw.subject,
            id=message_id,
            sequence=sequence,
            attempt=delivered,
            traceparent=headers.get("traceparent"),
            headers=headers,
        )
        told, content = self._read(raw.data, message)
        if told is not None:
            self._hand.mark(sequence, Settled(message_id, raw.reply, told))
            self._soon(raw.reply, told)
        elif content is not None and self._workers is not None:
            lane = (content.repository.id, content.issue.number)
            self._hand.take(Held(sequence, message_id, raw.reply, lane, content, delivered))
            self._workers.schedule_lane(lane)

    def _read(self, payload: bytes, message: Message) -> tuple[Optional[bytes], Any]:
        """Either how it is settled without a handler, or what it holds."""
        if not self._subscription.filter.wants_subject(message.subject):
            return ACK, None
        try:
            content = self._subscription.read(payload, message)
        except VersionError as fatal:
            # What it says may mean something else. The broker keeps it for who can read it.
            self._fatal = fatal
            self.stop()
            return None, None
        except UnreadableError as error:
            log.error("%s cannot be read: %s", message.id, error)
            if self._subscription.on_unreadable is not None:
                try:
                    self._subscription.on_unreadable(error, message)
                except BaseException as fatal:
                    self._fatal = fatal
                    self.stop()
                    return None, None
            return term(f"cannot be read: {error}"), None
        return (ACK, None) if self._subscription.skips(content) else (None, content)

    def _soon(self, reply: str, told: bytes) -> None:
        task = asyncio.ensure_future(self._tell(reply, told))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _tell(self, reply: str, told: bytes) -> None:
        client = self._client
        if client is None:
            return
        try:
            await client.publish(reply, told)
        except (nats.errors.Error, OSError) as error:
            # The next connection tells it again.
            log.debug("cannot tell the broker: %s", describe(error))

    async def _keep_alive(self) -> None:
        """Says of all that is in hand that it is being worked on, twice an ack wait."""
        while True:
            ack_wait = self._found.ack_wait if self._found else 1.0
            await asyncio.sleep(max(0.2, ack_wait / 2))
            for place, held in enumerate(self._hand):
                await self._tell(held.reply, IN_PROGRESS)
                if place % 100 == 99:
                    await asyncio.sleep(0)

    async def _finish(self) -> None:
        """Ends handlers and gives back what was not begun, then the connection."""
        if self._workers is not None:
            await self._workers.stop(self._subscription.drain_timeout)
        client = self._client
        if client is None or client.is_closed:
            client = await self._last_connection()
        if client is not None:
            # Once the broker has answered, it has read all that was said before.
            with contextlib.suppress(Exception):
                await client.flush(timeout=2)
            await connection.close(client)
        self._client = None
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=1)

    async def _last_connection(self) -> Optional[Client]:
        """A connection only to tell what is settled, if there is anything to tell."""
        if not self._hand.untold():
            return None
        try:
            client = await asyncio.wait_for(connection.connect(self._settings), 2)
        except Exception as error:
            log.warning("cannot tell the broker what was handled last: %s", describe(error))
            return None
        self._client = client
        for settled in self._hand.untold():
            await self._tell(settled.reply, settled.told)
        return client

    async def _unless_stopped(self, wish: Coroutine[Any, Any, T]) -> Optional[T]:
        """Waits for it, or until it is stopped: then nothing."""
        task = asyncio.ensure_future(wish)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(BaseException):
                    await task

    def _trouble(self, text: str) -> None:
        """Logs it, and not again for a while."""
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(text, -_REPEAT_LOG) >= _REPEAT_LOG:
            self._logged[text] = now
            log.warning("%s: %s; tried again", found_name(self._subscription), text)


def found_name(subscription: Subscription) -> str:
    """The consumer, for log lines."""
    return f"{subscription.wanted.stream}/{subscription.wanted.durable}"


def _positions(reply: str) -> tuple[int, int, int]:
    """How often it was delivered, its sequence in the stream, and the count of the delivery, from
    the subject of its acks. Raises `ValueError`."""
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"]:
        raise ValueError("not the subject of an ack")
    if len(tokens) == 9:
        first = 4
    elif len(tokens) >= 11:
        # With a domain and a hash of the account before the stream.
        first = 6
    else:
        raise ValueError("another number of tokens")
    delivered, sequence, count = (int(token) for token in tokens[first : first + 3])
    return delivered, sequence, count
