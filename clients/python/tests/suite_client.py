"""The Python client under the common suite (`clients/suite/README.md`)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coordinator_client import Again, Change, Remember, Settings, changes
from coordinator_client.subscriber import Subscriber


class Record(Remember):
    """The record is the effect and holds the ids: one write keeps both."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o600)
        with open(file) as lines:
            self._ids = {line.split()[-1] for line in lines if line.endswith("\n")}

    async def seen(self, message_id: str) -> bool:
        return message_id in self._ids

    @asynccontextmanager
    async def handling(self, message_id: str) -> AsyncIterator[None]:
        yield None
        self._ids.add(message_id)

    def write(self, change: Change) -> None:
        issue = f"{change.repository.id}.{change.issue.number}"
        line = f"{time.time_ns()} {change.message.sequence} {issue} {change.message.id}\n"
        os.write(self._file, line.encode())


async def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--nats-url", required=True)
    arguments.add_argument("--durable", required=True)
    arguments.add_argument("--record", required=True)
    arguments.add_argument("--ack-wait", type=float, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    chance = random.Random(given.seed)
    record = Record(given.record)

    async def handle(change: Change) -> None:
        # Some take long, and some fail at first.
        draw = chance.random()
        if draw < 0.01:
            await asyncio.sleep(draw * 10)
        elif draw < 0.015:
            raise Again(0.02)
        elif draw < 0.5:
            await asyncio.sleep(0)
        record.write(change)

    subscription = changes(
        durable=given.durable, handler=handle, remember=record, ack_wait=given.ack_wait
    )
    subscriber = Subscriber(subscription, Settings(url=given.nats_url))
    loop = asyncio.get_running_loop()

    async def tell() -> None:
        while True:
            await subscriber.consuming.wait()
            print("consuming", flush=True)
            while subscriber.consuming.is_set():
                await asyncio.sleep(0.01)

    def on_input() -> None:
        if sys.stdin.readline() in ("stop\n", ""):
            loop.remove_reader(sys.stdin)
            subscriber.stop()

    loop.add_reader(sys.stdin, on_input)
    telling = asyncio.ensure_future(tell())
    await subscriber.run()
    telling.cancel()
    print("stopped", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main())
