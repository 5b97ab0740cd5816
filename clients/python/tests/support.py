"""What the tests share: a real broker, and changes on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
import unittest
import uuid
from pathlib import Path
from typing import Any, Callable, Optional

import nats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "suite"))

import chaos
from broker import Broker
from coordinator_client import Settings, Subscription
from coordinator_client.subscriber import Subscriber

logging.getLogger("coordinator_client").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.ERROR)
logging.getLogger("nats").setLevel(logging.CRITICAL)

ROOT = Path(__file__).resolve().parents[3]
STREAM = "GITEA_CHANGES"


def change_json(**fields: Any) -> dict[str, Any]:
    """The payload of a change, with these fields in place of its own."""
    _, payload, _ = chaos.change(1, 7, 0, str(uuid.uuid4()))
    found: dict[str, Any] = json.loads(payload)
    found.update(fields)
    return found


class Door:
    """A way to the broker that can be shut: then whoever goes through it is cut off."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = True
        self._server: Optional[asyncio.base_events.Server] = None
        self._within: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Returns the URL of the broker through it."""
        self._server = await asyncio.start_server(self._enter, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"nats://127.0.0.1:{port}"

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.close()
            return
        task = asyncio.ensure_future(self._through(reader, writer))
        self._within.add(task)
        task.add_done_callback(self._within.discard)

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        others = []
        with contextlib.suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
            others.append(inner_writer)
            ways = [self._one_way(reader, inner_writer), self._one_way(inner_reader, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        for each in (writer, *others):
            each.close()

    @staticmethod
    async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    def shut(self) -> None:
        """Nobody gets through."""
        self._open = False
        for task in self._within:
            task.cancel()

    def reopen(self) -> None:
        """Whoever tries gets through again."""
        self._open = True

    def stop(self) -> None:
        """Ends it."""
        self.shut()
        if self._server is not None:
            self._server.close()


class BrokerCase(unittest.IsolatedAsyncioTestCase):
    """A test with a server of its own."""

    config = ""

    async def asyncSetUp(self) -> None:
        self.directory = Path(self.enterContext_(tempfile.TemporaryDirectory()))
        self.broker = Broker(self.directory / "broker", self.config)
        self.subscribers: list[tuple[Subscriber, asyncio.Task[None]]] = []
        self.broker.start()
        self.addCleanup(self.broker.kill)

    def enterContext_(self, context: Any) -> Any:
        # Python 3.11 has it under this name without the line.
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()

    async def asyncTearDown(self) -> None:
        self.broker.resume()
        for subscriber, task in self.subscribers:
            subscriber.stop()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 10)

    async def admin(self) -> Any:
        client = await nats.connect(self.broker.url, **self.login())
        self.addAsyncCleanup(client.close)
        return client

    def login(self) -> dict[str, Any]:
        return {}

    async def make_stream(self) -> Any:
        client = await self.admin()
        await client.jetstream().add_stream(
            name=STREAM, subjects=["gitea.changes.>"], duplicate_window=3600
        )
        return client

    async def publish(
        self, client: Any, number: int, count: int, edit: Optional[Callable[[Any], None]] = None
    ) -> str:
        """Publishes change `count` of the issue; returns its message id."""
        subject, payload, headers = chaos.change(1, number, count, str(uuid.uuid4()))
        if edit is not None:
            value = json.loads(payload)
            edit(value)
            payload = json.dumps(value).encode()
            subject = subject.replace(subject.split(".")[2], str(value.get("kind", "assigned")), 1)
        await client.jetstream().publish(subject, payload, headers=headers)
        return headers["Nats-Msg-Id"]

    def start(self, subscription: Subscription, settings: Optional[Settings] = None) -> Subscriber:
        subscriber = Subscriber(subscription, settings or Settings(url=self.broker.url))
        self.subscribers.append((subscriber, asyncio.ensure_future(subscriber.run())))
        return subscriber

    async def stop(self, subscriber: Subscriber) -> None:
        """Stops it, and raises what it ended with."""
        [task] = [task for each, task in self.subscribers if each is subscriber]
        subscriber.stop()
        await asyncio.wait_for(task, 15)

    async def until(self, condition: Callable[[], Any], what: str, within: float = 10) -> float:
        """Waits until it holds; returns the seconds that it took."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > within:
                self.fail(f"not within {within} s: {what}")
            await asyncio.sleep(0.01)
        return time.monotonic() - begun

    async def door(self) -> tuple[Door, str]:
        """A way to the broker, and the URL through it."""
        door = Door(self.broker.port)
        url = await door.start()
        self.addCleanup(door.stop)
        return door, url

    async def until_acked(self, client: Any, durable: str, within: float = 5) -> None:
        deadline = time.monotonic() + within
        while True:
            info = await client.jetstream().consumer_info(STREAM, durable)
            if info.num_ack_pending == 0 and info.num_pending == 0:
                return
            if time.monotonic() > deadline:
                self.fail(f"not acked: {info.num_ack_pending}, pending: {info.num_pending}")
            await asyncio.sleep(0.02)


def event_json(**fields: Any) -> dict[str, Any]:
    """The payload of an event, with these fields in place of its own."""
    change = change_json()
    found = {
        "version": 1,
        "delivery": {
            "id": change["cause"]["delivery_id"],
            "received_at": "2026-11-23T23:45:02.125Z",
            "body_sha256": "5f70",
            "hook": "repository",
        },
        "action": "assigned",
        "issue": change["issue"],
        "repository": change["repository"],
        "sender": change["sender"],
        "cut": False,
    }
    return {**found, **fields}
