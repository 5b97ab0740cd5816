"""Asks for messages over one connection, until that ends.

A request for messages is answered by messages, by a heartbeat each second, or by a status that ends
it. Where nothing at all comes for longer, the connection is given up, whatever it looks like.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Callable, Optional

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from . import consumer
from .consumer import Found, NotNow
from .hand import Hand
from .sharing import Sharing
from .subscription import Subscription

log = logging.getLogger("coordinator_client")

_NANOS = 1_000_000_000
#: Seconds between two heartbeats, and without any sign before the connection is given up.
HEARTBEAT = 1.0
SILENCE = 2.5
#: Seconds after which a request ends by itself.
_EXPIRES = 30.0
_MOST_BATCH = 256
_TICK = 0.1
#: Seconds between two looks for another program.
_WATCH = 1.0
#: Requests that are sent while the hand is closed have room for these, whatever is in hand.
_LEAST_WHILE_CLOSED = 16
_STATUS = "Status"
_DESCRIPTION = "Description"


class Session:
    """One connection at work."""

    def __init__(
        self,
        client: Client,
        subscription: Subscription,
        hand: Hand,
        found: Found,
        sharing: Sharing,
        receive: Callable[[Msg], None],
        looked: Callable[[], None],
        wake: asyncio.Event,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._subscription = subscription
        self._hand = hand
        self._found = found
        self._sharing = sharing
        self._receive = receive
        self._looked = looked
        self._wake = wake
        self._stop = stop
        self._inbox = client.new_inbox()
        self._number = 0
        self._asked = 0
        self._silent = 0.0
        self._not_before = 0.0
        self._watch_at = 0.0
        self._watching: Optional[asyncio.Task[None]] = None
        self._end: Optional[str] = None

    async def run(self) -> str:
        """Until the connection ends or it is stopped; returns why, or nothing if stopped. Raises
        `NotNow` if the broker does not answer."""
        # Nothing is dropped here: what comes is bounded by what is asked for.
        inbox = await self._client.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_bytes_limit=0
        )
        try:
            return await self._until_it_ends(inbox)
        finally:
            if self._watching is not None:
                self._watching.cancel()

    async def _until_it_ends(self, inbox: NatsSubscription) -> str:
        loop = asyncio.get_running_loop()
        ticked = True
        look_at = 0.0
        # The broker may take a former connection of ours for alive at first.
        self._watch_at = loop.time() + _WATCH
        while not self._stop.is_set():
            if self._client.is_closed:
                return "the connection is lost"
            if self._end is not None:
                return self._end
            if not self._hand.is_open and loop.time() >= look_at:
                await self._look()
                look_at = loop.time() + _TICK
            elif loop.time() >= self._watch_at:
                self._watch()
            if self._asked <= 0 and loop.time() >= self._not_before:
                await self._ask(ticked)
            ticked = await self._rest()
            # A program that was busy or suspended meanwhile counts one tick: what has come since
            # waits to be read.
            self._silent += _TICK if ticked and self._asked > 0 else 0
            if self._silent > SILENCE:
                return "no heartbeat comes"
        await self._leave(inbox)
        return ""

    async def _rest(self) -> bool:
        """Waits for something to do. Returns whether a tick has passed without."""
        try:
            await asyncio.wait_for(self._wake.wait(), _TICK)
        except asyncio.TimeoutError:
            return True
        self._wake.clear()
        return False

    async def _look(self) -> None:
        asked, number = self._asked, self._number
        found = await consumer.look(self._client, self._subscription.wanted)
        if found is None:
            self._end = "the consumer was deleted"
            return
        now = asyncio.get_running_loop().time()
        if now >= self._watch_at:
            self._watch_at = now + _WATCH
            # A request that has begun or ended meanwhile may be counted.
            mine = max(asked, self._asked) > 0 or number != self._number
            here = self._hand.here(found.standing)
            if self._sharing.look(found.standing, int(mine), here):
                log.info("another program uses the consumer %s", self._subscription.wanted.durable)
        self._hand.look(found.standing)
        self._looked()

    def _watch(self) -> None:
        """Looks, and holds nothing up meanwhile."""

        async def watch() -> None:
            with contextlib.suppress(NotNow):
                await self._look()

        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(watch())

    async def _ask(self, ticked: bool) -> None:
        free = self._found.most_unacked - len(self._hand)
        if not self._hand.is_open:
            free = max(free, _LEAST_WHILE_CLOSED)
        # Some places at once: not a request for each message.
        enough = max(1, min(16, self._found.most_unacked // 4))
        if free < (1 if ticked else enough):
            return
        batch = min(free, self._found.most_batch or _MOST_BATCH, _MOST_BATCH)
        expires = min(self._found.most_expires or _EXPIRES, _EXPIRES)
        question = {"batch": batch, "expires": int(expires * _NANOS)}
        if expires > 2 * HEARTBEAT:
            question["idle_heartbeat"] = int(HEARTBEAT * _NANOS)
        wanted = self._subscription.wanted
        self._number += 1
        self._asked = batch
        self._silent = 0.0
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{wanted.stream}.{wanted.durable}",
            json.dumps(question).encode(),
            reply=f"{self._inbox}.{self._number}",
        )

    async def _on_message(self, message: Msg) -> None:
        self._silent = 0.0
        if message.headers and _STATUS in message.headers and not message.reply:
            self._on_status(message)
            return
        self._asked -= 1
        if self._asked <= 0:
            self._wake.set()
        self._receive(message)

    def _on_status(self, message: Msg) -> None:
        assert message.headers is not None
        status = message.headers[_STATUS]
        if status == "100" or message.subject != f"{self._inbox}.{self._number}":
            return
        # Whatever it is, the request is over.
        self._asked = 0
        self._wake.set()
        why = message.headers.get(_DESCRIPTION, "")
        text = why.lower()
        if status in ("404", "408") or "completed" in text or "maxbytes" in text:
            return
        if status == "409" and "exceeded" not in text:
            # Consumer deleted, leadership change, server shutdown: begin anew.
            self._end = why or "the request was ended"
        elif status == "503":
            self._end = "nobody answers the request"
        else:
            log.warning("the broker refuses a request for messages: %s %.200s", status, why)
            self._not_before = asyncio.get_running_loop().time() + 1

    async def _leave(self, inbox: NatsSubscription) -> None:
        """Takes in what is on its way, and ends the request."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(inbox.drain(), 2)  # type: ignore[no-untyped-call]


__all__ = ["NotNow", "Session"]
