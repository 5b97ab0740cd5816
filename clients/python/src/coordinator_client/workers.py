"""Runs handlers, one an issue and many at once, and settles their messages."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Callable, Optional

from . import tracing
from .connection import describe
from .hand import Hand, Held
from .outcomes import Again, Never
from .subscription import Subscription

log = logging.getLogger("coordinator_client")

ACK = b"+ACK"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"

#: Publishes to the ack subject of a message. Does nothing while there is no connection.
Tell = Callable[[str, bytes], Awaitable[None]]


def term(reason: str) -> bytes:
    """The end of a message that can never be handled, with the reason for the broker's advisory."""
    return b"+TERM " + " ".join(reason.split())[:200].encode("utf-8", "replace")


class Workers:
    """Handlers at work."""

    def __init__(
        self, subscription: Subscription, hand: Hand, tell: Tell, freed: Callable[[], None]
    ) -> None:
        self._subscription = subscription
        self._hand = hand
        self._tell = tell
        self._freed = freed
        self._queue: asyncio.Queue[Held] = asyncio.Queue()
        self._stopping = False
        # By identity.
        self._at_work: list[Held] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads: Optional[ThreadPoolExecutor] = None
        self.tasks = [asyncio.ensure_future(self._work()) for _ in range(subscription.concurrency)]

    def schedule(self, held: Optional[Held] = None) -> None:
        """Gives this message to a handler, or all that may be handled now."""
        if self._stopping:
            return
        for head in self._hand.ready() if held is None else [held]:
            head.running = True
            self._queue.put_nowait(head)

    def schedule_lane(self, lane: object) -> None:
        """Gives the head of a lane to a handler, if it may be handled now."""
        head = self._hand.head(lane)
        if head is not None:
            self.schedule(head)

    async def _work(self) -> None:
        while True:
            held = await self._queue.get()
            if self._stopping:
                held.running = False
                continue
            self._at_work.append(held)
            self._idle.clear()
            try:
                await self._attempt(held)
            finally:
                self._at_work.remove(held)
                if not self._at_work:
                    self._idle.set()

    async def _attempt(self, held: Held) -> None:
        try:
            await self._handle(held)
        except Never as never:
            log.warning("%s can never be handled: %s", held.id, describe(never))
            await self._settle(held, term(never.reason))
        except Again as again:
            self._retry(held, again.delay)
        except asyncio.CancelledError:
            held.running = False
            if self._stopping:
                raise
            # The handler itself was cancelled, by whatever it waited for.
            self._retry(held, None)
        except Exception as error:
            delay = self._retry(held, None)
            log.error(
                "the handler of %s failed, and is called again in %.1f s: %s",
                held.id,
                delay,
                describe(error),
                exc_info=True,
            )
        else:
            await self._settle(held, ACK)

    async def _handle(self, held: Held) -> None:
        subscription = self._subscription
        if await subscription.remember.seen(held.id):
            log.debug("%s was handled before", held.id)
            return
        content = held.content
        attempt = held.attempts + held.delivered
        message = replace(content.message, attempt=attempt)
        with tracing.handling(message, subscription.wanted.durable, content.issue.ref):
            async with subscription.remember.handling(held.id) as transaction:
                message = replace(message, transaction=transaction)
                await self._call(replace(content, message=message))

    async def _call(self, content: Any) -> None:
        handler = self._subscription.handler
        if inspect.iscoroutinefunction(handler):
            await handler(content)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._subscription.concurrency, "handler")
        # The span of the trace is in the context.
        call = functools.partial(contextvars.copy_context().run, handler, content)
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        # A callable object may still be asynchronous.
        if inspect.isawaitable(answer):
            await answer

    def _retry(self, held: Held, delay: Optional[float]) -> float:
        held.attempts += 1
        if delay is None:
            first, longest = self._subscription.first_delay, self._subscription.longest_delay
            delay = min(longest, first * 2 ** min(held.attempts - 1, 30))
        held.running, held.waiting = False, True
        asyncio.get_running_loop().call_later(delay, self._over, held)
        return delay

    def _over(self, held: Held) -> None:
        held.waiting = False
        self.schedule_lane(held.lane)

    async def _settle(self, held: Held, told: bytes) -> None:
        if self._hand.settle(held, told):
            await self._tell(held.reply, told)
        self.schedule_lane(held.lane)
        self._freed()

    async def stop(self, timeout: float) -> None:
        """Lets handlers that run finish, within `timeout` seconds; then they are cancelled. What
        was not begun goes back to the broker, in order."""
        self._stopping = True
        await self._give_back()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except asyncio.TimeoutError:
            log.warning("%d handlers did not finish within %.1f s", len(self._at_work), timeout)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._give_back()
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    async def _give_back(self) -> None:
        for held in list(self._hand):
            if held not in self._at_work:
                self._hand.drop(held)
                await self._tell(held.reply, NAK)
