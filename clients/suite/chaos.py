#!/usr/bin/env python3
"""The suite that every client passes: changes of many issues, while broker and client are killed,
restarted and paused. Nothing may be lost, nothing done twice, nothing of an issue out of order.

    clients/suite/chaos.py [--short] -- python clients/python/tests/suite_client.py
    clients/suite/chaos.py --seed 7 -- target/debug/examples/suite_client

It needs nats-py, to publish. `clients/suite/README.md` says what the client has to do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any, Optional

import nats
import nats.errors

sys.path.insert(0, str(Path(__file__).resolve().parent))
from broker import Broker

DURABLE = "suite"
STREAM = "GITEA_CHANGES"
KINDS = ("assigned", "unassigned", "closed", "reopened")


def change(
    repository: int, number: int, count: int, delivery: str
) -> tuple[str, bytes, dict[str, str]]:
    """The change `count` of an issue: subject, payload, headers."""
    kind = KINDS[count % len(KINDS)]
    bot = {"id": 4, "login": "bot"}
    maria = {"id": 1, "login": "maria"}
    name, at = f"repo.{repository}", "2026-11-23T23:45:02.125Z"
    payload = {
        "version": 1,
        "kind": kind,
        "added": ["bot"] if kind == "assigned" else [],
        "added_ids": [4] if kind == "assigned" else [],
        "removed": ["bot"] if kind == "unassigned" else [],
        "removed_ids": [4] if kind == "unassigned" else [],
        "assignees": ["bot"],
        "assignee_ids": [4],
        "in_doubt": False,
        "first_seen": False,
        "issue": {
            "id": repository * 1000 + number,
            "number": number,
            "title": f"Change {count}",
            "body": "Steps: open `/login`, press *Sign in*.",
            "url": f"http://localhost:3000/acme/{name}/issues/{number}",
            "state": "open",
            "assignees": [bot],
            "labels": ["bug"],
            "author": maria,
            "created_at": "2026-11-23T23:45:00Z",
            "updated_at": "2026-11-23T23:45:02Z",
        },
        "repository": {
            "id": repository,
            "owner": "acme",
            "name": name,
            "url": f"http://localhost:3000/acme/{name}",
            "clone_url": f"http://localhost:3000/acme/{name}.git",
            "default_branch": "main",
        },
        "sender": maria,
        "cause": {"delivery_id": delivery, "action": kind, "received_at": at},
        "cut": False,
    }
    headers = {
        "Nats-Msg-Id": f"{delivery}:{kind}",
        "ce-specversion": "1.0",
        "ce-id": f"{delivery}:{kind}",
        "ce-source": "http://localhost:3000",
        "ce-type": f"io.gitea.issue.change.{kind}",
        "ce-subject": f"acme/{name}#{number}",
        "ce-time": at,
        "content-type": "application/json",
        "traceparent": f"00-{delivery.replace('-', '')}-00f067aa0ba902b7-01",
    }
    subject = f"gitea.changes.{kind}.acme.{name.replace('.', '%2E')}.{number}"
    return subject, json.dumps(payload).encode(), headers


class Publisher:
    """Publishes the changes of all issues, those of one issue one after the other."""

    def __init__(self, url: str, total: int, issues: int, seconds: float, seed: int) -> None:
        self._url = url
        self._total = total
        self._issues = [(1 + i // 50, 1 + i % 50) for i in range(issues)]
        self._seconds = seconds
        self._random = random.Random(seed)
        self._begun = time.monotonic()
        self._taken = 0
        #: Message id → issue and place among its changes.
        self.published: dict[str, tuple[str, int]] = {}
        self._client: Any = None
        self._connecting = asyncio.Lock()

    async def run(self) -> None:
        shares = [self._issues[i::64] for i in range(64)]
        await asyncio.gather(*(self._lane(share) for share in shares if share))
        await self._client.close()

    async def _lane(self, issues: list[tuple[int, int]]) -> None:
        counts = dict.fromkeys(issues, 0)
        while self._taken < self._total:
            # Spread over the time that the run is to take.
            due = self._begun + self._seconds * self._taken / self._total
            self._taken += 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            issue = self._random.choice(issues)
            delivery = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            subject, payload, headers = change(*issue, counts[issue], delivery)
            message_id = headers["Nats-Msg-Id"]
            self.published[message_id] = (f"{issue[0]}.{issue[1]}", counts[issue])
            counts[issue] += 1
            await self._until_kept(subject, payload, headers)

    async def _until_kept(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Repeats it under the same id until the stream has it."""
        while True:
            try:
                client = await self._connected()
                answer = await client.request(subject, payload, timeout=2, headers=headers)
                if "seq" in json.loads(answer.data):
                    return
            except (nats.errors.Error, OSError, asyncio.TimeoutError, AssertionError):
                pass
            await asyncio.sleep(0.1)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None or self._client.is_closed:

                async def quiet(error: Exception) -> None:
                    pass

                self._client = await asyncio.wait_for(
                    nats.connect(
                        self._url,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=2,
                        error_cb=quiet,
                    ),
                    3,
                )
            return self._client


class Client:
    """The program under test."""

    def __init__(self, command: list[str], directory: Path, url: str, ack_wait: float) -> None:
        self._command = command
        self._directory = directory
        self.record = directory / "record"
        self._arguments = [
            "--nats-url", url, "--durable", DURABLE, "--record", str(self.record),
            "--ack-wait", str(ack_wait),
        ]  # fmt: skip
        self.process: Optional[asyncio.subprocess.Process] = None
        self.ready = asyncio.Event()
        self._lives = 0

    async def start(self) -> None:
        self._lives += 1
        self.ready.clear()
        log = open(self._directory / "client.log", "ab")
        self.process = await asyncio.create_subprocess_exec(
            *self._command, *self._arguments, "--seed", str(self._lives),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
        log.close()
        self._reading = asyncio.ensure_future(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.strip() == b"consuming":
                self.ready.set()

    def signal(self, number: int) -> None:
        assert self.process is not None
        if self.process.returncode is not None:
            raise SystemExit(f"the client ended by itself; see {self._directory / 'client.log'}")
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self) -> float:
        """Asks it to end; returns the seconds that it took."""
        assert self.process is not None and self.process.stdin is not None
        begun = time.monotonic()
        self.process.stdin.write(b"stop\n")
        with contextlib.suppress(ConnectionError):
            await self.process.stdin.drain()
        code = await asyncio.wait_for(self.process.wait(), 30)
        if code != 0:
            raise SystemExit(f"the client ended with {code}; see {self._directory / 'client.log'}")
        return time.monotonic() - begun


def lines(record: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        with open(record, "rb") as file:
            return sum(1 for _ in file)
    return 0


async def grows(record: Path, past: int, publishing: asyncio.Event) -> Optional[float]:
    """Seconds until the record is longer than `past`, while something is published at all."""
    begun = time.monotonic()
    while publishing.is_set():
        with contextlib.suppress(FileNotFoundError):
            if os.stat(record).st_size > past:
                return time.monotonic() - begun
        await asyncio.sleep(0.01)
    return None


def size(record: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(record).st_size
    return 0


class Faults:
    """Kills, restarts and pauses, one after the other."""

    KINDS = (
        "broker killed",
        "broker killed",
        "broker stopped",
        "client killed",
        "client killed",
        "client stopped",
        "both killed",
        "broker paused",
        "client paused",
    )

    def __init__(
        self, broker: Broker, client: Client, publishing: asyncio.Event, seed: int, ack_wait: float
    ) -> None:
        self._broker = broker
        self._publishing = publishing
        self._client = client
        self._random = random.Random(seed)
        self._ack_wait = ack_wait
        # Each kind comes before one comes again.
        self._deck: list[str] = []
        self.done: dict[str, int] = defaultdict(int)
        self.resumed: dict[str, list[float]] = defaultdict(list)

    @property
    def restarts(self) -> int:
        return sum(n for kind, n in self.done.items() if "paused" not in kind)

    async def one(self) -> None:
        if not self._deck:
            self._deck = self._random.sample(self.KINDS, len(self.KINDS))
        kind = self._deck.pop()
        self.done[kind] += 1
        loop = asyncio.get_running_loop()
        if kind == "broker killed":
            self._broker.kill()
            await asyncio.sleep(self._random.uniform(0, 0.5))
            await loop.run_in_executor(None, self._broker.start)
        elif kind == "broker stopped":
            await loop.run_in_executor(None, self._broker.stop)
            await loop.run_in_executor(None, self._broker.start)
        elif kind == "client killed":
            await self._client.kill()
            await self._client.start()
        elif kind == "client stopped":
            await self._client.stop()
            await self._client.start()
        elif kind == "both killed":
            await self._client.kill()
            self._broker.kill()
            await loop.run_in_executor(None, self._broker.start)
            await self._client.start()
        elif kind == "broker paused":
            self._broker.pause()
            await asyncio.sleep(self._random.uniform(0.1, 5))
            self._broker.resume()
        else:
            self._client.signal(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.1, 2 * self._ack_wait))
            self._client.signal(signal.SIGCONT)
        past = size(self._client.record)
        took = await grows(self._client.record, past, self._publishing)
        if took is not None:
            self.resumed[kind].append(took)


def check(published: dict[str, tuple[str, int]], record: Path) -> dict[str, int]:
    """What the record says, against what was published."""
    seen: dict[str, int] = defaultdict(int)
    last: dict[str, int] = {}
    out_of_order = unknown = 0
    for line in record.read_text().splitlines():
        _, _, issue, message_id = line.split(" ")
        seen[message_id] += 1
        if message_id not in published or published[message_id][0] != issue:
            unknown += 1
            continue
        place = published[message_id][1]
        if seen[message_id] == 1:
            if place < last.get(issue, -1):
                out_of_order += 1
            last[issue] = max(place, last.get(issue, -1))
    return {
        "published": len(published),
        "handled": len(seen),
        "lost": sum(1 for message_id in published if message_id not in seen),
        "twice": sum(1 for times in seen.values() if times > 1),
        "out of order": out_of_order,
        "unknown": unknown,
    }


async def suite(given: argparse.Namespace, directory: Path) -> bool:
    begun = time.monotonic()
    broker = Broker(directory / "broker")
    broker.start()
    client = Client(given.client, directory, broker.url, given.ack_wait)
    admin = await nats.connect(broker.url)
    await admin.jetstream().add_stream(
        name=STREAM, subjects=["gitea.changes.>"], duplicate_window=3600
    )
    await admin.close()
    publisher = Publisher(broker.url, given.changes, given.issues, given.seconds, given.seed)
    publishing = asyncio.Event()
    publishing.set()
    faults = Faults(broker, client, publishing, given.seed, given.ack_wait)
    try:
        await client.start()
        publishes = asyncio.ensure_future(publisher.run())
        publishes.add_done_callback(lambda _: publishing.clear())
        pause = random.Random(given.seed + 1)
        while faults.restarts < given.restarts:
            await asyncio.sleep(pause.uniform(0.2, 1.0))
            await faults.one()
            if given.verbose:
                print(f"{time.monotonic() - begun:6.1f} s {dict(faults.done)}", flush=True)
        published_at = time.monotonic()
        await publishes
        # What was published last is handled without any fault.
        deadline = time.monotonic() + 120
        while lines(client.record) < given.changes and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        drained = time.monotonic() - published_at
        await asyncio.sleep(0.5)
        await client.stop()
    finally:
        if client.process is not None and client.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                client.process.kill()
        broker.resume()
        broker.stop()
    result = check(publisher.published, client.record)
    result["restarts"] = faults.restarts
    result["pauses"] = sum(n for kind, n in faults.done.items() if "paused" in kind)
    print(json.dumps(result))
    print(
        f"seed {given.seed}, {time.monotonic() - begun:.0f} s, {drained:.0f} s after the last fault"
    )
    for kind, seconds in sorted(faults.resumed.items()):
        print(
            f"{kind}: {faults.done[kind]} times, handling again after "
            f"{statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest)"
        )
    wrong = ("lost", "twice", "out of order", "unknown")
    return all(result[what] == 0 for what in wrong) and result["published"] == given.changes


def main() -> None:
    # nats-py logs each break of the publisher's connection.
    for name in ("nats", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    arguments = argparse.ArgumentParser(usage="%(prog)s [options] -- CLIENT [ARGUMENT ...]")
    arguments.add_argument("--short", action="store_true", help="half a minute, for CI")
    arguments.add_argument("--changes", type=int)
    arguments.add_argument("--issues", type=int, default=500)
    arguments.add_argument("--restarts", type=int)
    arguments.add_argument("--seconds", type=float, help="over how long it publishes")
    arguments.add_argument("--ack-wait", type=float, default=2)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--keep", help="directory to leave behind")
    arguments.add_argument("--verbose", action="store_true")
    arguments.add_argument("client", nargs="+")
    given = arguments.parse_args()
    given.changes = given.changes or (3_000 if given.short else 100_000)
    given.restarts = given.restarts if given.restarts is not None else 8 if given.short else 100
    given.seconds = given.seconds if given.seconds is not None else 12 if given.short else 240
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(given.keep or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if asyncio.run(suite(given, directory)) else 1)


if __name__ == "__main__":
    main()
