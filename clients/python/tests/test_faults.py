"""Against a real broker that is killed, paused or away, and a client that is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import nats

from coordinator_client import Change, Never, Settings, Subscription, changes
from coordinator_client.subscriber import Subscriber
from support import STREAM, BrokerCase

PROGRAM = Path(__file__).with_name("suite_client.py")


class Loses(Subscriber):
    """A subscriber that does not get the messages of these sequences, once each."""

    def __init__(self, lose: set[int], subscription: Subscription, settings: Settings) -> None:
        super().__init__(subscription, settings)
        self._lose = lose

    def _receive(self, raw: object) -> None:
        sequence = int(raw.reply.split(".")[5])  # type: ignore[attr-defined]
        if sequence in self._lose:
            self._lose.remove(sequence)
            return
        super()._receive(raw)  # type: ignore[arg-type]


class BrokerFaults(BrokerCase):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.handled: list[int] = []

    async def handle(self, change: Change) -> None:
        self.handled.append(int(change.issue.title.split()[-1]))

    async def publish_one(self, count: int) -> None:
        client = await self.admin()
        await self.publish(client, 1, count)

    async def test_it_waits_for_a_broker_that_is_away_and_for_a_stream_that_is_not_there(
        self,
    ) -> None:
        self.broker.kill()
        self.start(changes(durable="early", handler=self.handle))
        await asyncio.sleep(0.3)
        self.broker.start()
        await asyncio.sleep(0.3)
        client = await self.make_stream()
        await self.publish(client, 1, 0)
        took = await self.until(lambda: self.handled, "it is handled")
        self.assertLess(took, 2)

    async def test_it_goes_on_within_two_seconds_after_the_broker_was_killed(self) -> None:
        client = await self.make_stream()
        self.start(changes(durable="killed", handler=self.handle))
        await self.publish(client, 1, 0)
        await self.until(lambda: self.handled, "the first one is handled")
        for count in range(1, 4):
            self.broker.kill()
            self.broker.start()
            back = time.monotonic()
            await self.publish_one(count)
            await self.until(lambda count=count: count in self.handled, "it is handled")
            self.assertLess(time.monotonic() - back, 2)
        self.assertEqual(self.handled, list(range(4)))

    async def test_what_was_settled_while_the_broker_was_away_is_told_and_not_done_twice(
        self,
    ) -> None:
        client = await self.make_stream()
        # One that was killed has forgotten what it gave out last, and one that was stopped has not.
        for crash in (self.broker.kill, self.broker.stop):
            durable = crash.__name__
            go_on = asyncio.Event()

            async def handle(change: Change, go_on: asyncio.Event = go_on) -> None:
                await go_on.wait()
                await self.handle(change)
                if self.handled[-1] == 1:
                    raise Never("whatever")

            subscriber = self.start(changes(durable=durable, handler=handle, start="new"))
            await self.until(subscriber.consuming.is_set, "it consumes")
            for count in range(3):
                await self.publish(client, 1, count)
            await self.until(lambda s=subscriber: len(s._hand) == 3, "all are in hand")
            crash()
            go_on.set()
            await self.until(lambda: len(self.handled) == 3, "all are handled")
            self.broker.start()
            client = await self.admin()
            # The ack wait is 30 s.
            await self.until_acked(client, durable)
            self.assertEqual(self.handled, [0, 1, 2])
            self.handled.clear()
            await self.stop(subscriber)

    async def test_a_paused_broker_is_noticed(self) -> None:
        client = await self.make_stream()
        subscriber = self.start(changes(durable="paused", handler=self.handle))
        await self.until(subscriber.consuming.is_set, "it consumes")
        self.broker.pause()
        await self.until(lambda: not subscriber.consuming.is_set(), "it is noticed", within=4)
        self.broker.resume()
        back = time.monotonic()
        await client.flush()
        await self.publish_one(0)
        await self.until(lambda: self.handled, "it is handled")
        self.assertLess(time.monotonic() - back, 4)

    async def test_a_loop_that_was_blocked_is_not_taken_for_a_silent_broker(self) -> None:
        client = await self.make_stream()

        calls: list[int] = []

        async def handle(change: Change) -> None:
            calls.append(change.message.attempt)
            time.sleep(3.5)
            # Meanwhile it comes again.
            await asyncio.sleep(0.3)
            await self.handle(change)

        with self.assertNoLogs_("coordinator_client"):
            self.start(changes(durable="blocked", handler=handle, ack_wait=1))
            await self.publish(client, 1, 0)
            await self.until(lambda: self.handled, "it is handled")
            await asyncio.sleep(0.5)
        await self.until_acked(client, "blocked")
        self.assertEqual(calls, [1])
        info = await client.jetstream().consumer_info(STREAM, "blocked")
        self.assertGreater(info.delivered.consumer_seq, 1)

    def assertNoLogs_(self, name: str) -> NoLogs:
        return NoLogs(self, name)

    async def test_what_is_lost_on_the_way_is_asked_for_at_once_and_in_order(self) -> None:
        client = await self.make_stream()
        lose: set[int] = set()

        subscriber = Loses(
            lose,
            changes(durable="lost", handler=self.handle, ack_wait=30),
            Settings(url=self.broker.url),
        )
        self.subscribers.append((subscriber, asyncio.ensure_future(subscriber.run())))
        await self.until(subscriber.consuming.is_set, "it consumes")
        await self.publish(client, 1, 0)
        await self.until(lambda: self.handled == [0], "the first one is handled")
        lose.add(2)
        await self.publish(client, 1, 1)
        await self.until(lambda: not lose, "the second one is lost")
        # Then it remembers that it gave it out.
        self.broker.stop()
        self.broker.start()
        begun = time.monotonic()
        await self.publish_one(2)
        await self.until(lambda: len(self.handled) == 3, "all are handled")
        self.assertEqual(self.handled, [0, 1, 2])
        # The ack wait is 30 s.
        self.assertLess(time.monotonic() - begun, 3)

    async def test_what_an_earlier_life_had_in_hand_comes_before_what_follows(self) -> None:
        client = await self.make_stream()
        js = client.jetstream()
        for take_over in (False, True):
            durable = f"life-{take_over}"
            config = {"ack_policy": "explicit", "ack_wait": 2, "deliver_policy": "new"}
            await js.add_consumer(STREAM, durable_name=durable, **config)
            for count in range(4):
                await self.publish(client, 1, count)
            earlier = await nats.connect(self.broker.url)
            pull = await earlier.jetstream().pull_subscribe_bind(durable, STREAM)
            self.assertEqual(len(await pull.fetch(2, timeout=2)), 2)
            await earlier.close()
            subscriber = self.start(
                changes(durable=durable, handler=self.handle, take_over=take_over)
            )
            took = await self.until(lambda: len(self.handled) == 4, "all are handled")
            self.assertEqual(self.handled, [0, 1, 2, 3])
            self.assertEqual(took < 1.5, take_over)
            self.handled.clear()
            await self.stop(subscriber)

    async def test_what_is_lost_within_a_connection_is_waited_for(self) -> None:
        client = await self.make_stream()
        lose = {1}

        for count in range(4):
            await self.publish(client, 1, count)
        subscriber = Loses(
            lose,
            changes(durable="gap", handler=self.handle, ack_wait=1),
            Settings(url=self.broker.url),
        )
        self.subscribers.append((subscriber, asyncio.ensure_future(subscriber.run())))
        await self.until(lambda: len(self.handled) == 4, "all are handled")
        self.assertEqual(self.handled, [0, 1, 2, 3])


class NoLogs:
    """Nothing is logged as a warning within. Python 3.10 has `assertNoLogs`."""

    def __init__(self, case: BrokerCase, name: str) -> None:
        self._logs = case.assertLogs(name, "WARNING")
        self._case = case

    def __enter__(self) -> None:
        self._watcher = self._logs.__enter__()

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._case.assertEqual(self._watcher.output, [])
        try:
            self._logs.__exit__(None, None, None)
        except self._case.failureException:
            pass


class ClientFaults(BrokerCase):
    def run_program(self, durable: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROGRAM), "--nats-url", self.broker.url]
        command += ["--durable", durable, "--record", str(self.directory / "record")]
        command += ["--ack-wait", "1"]
        with open(self.directory / "client.log", "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdin is not None
        self.addCleanup(process.stdin.close)
        return process

    def record(self) -> list[str]:
        file = self.directory / "record"
        return [line.split()[-1] for line in file.read_text().splitlines()] if file.exists() else []

    async def test_nothing_is_lost_or_done_twice_when_it_is_killed(self) -> None:
        client = await self.make_stream()
        ids = [await self.publish(client, n % 5, n // 5) for n in range(400)]
        for life in range(4):
            process = self.run_program("dies")
            past = len(self.record())
            await self.until(
                lambda past=past: len(self.record()) > min(past + 20, 399), f"life {life}"
            )
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.run_program("dies")
        await self.until(lambda: len(self.record()) >= 400, "all are handled")
        self.assertEqual(sorted(self.record()), sorted(ids))
        for issue in range(5):
            mine = [each for each in self.record() if each in ids[issue::5]]
            self.assertEqual(mine, ids[issue::5])

    async def test_it_goes_on_after_it_was_suspended(self) -> None:
        client = await self.make_stream()
        process = self.run_program("sleeps")
        first = await self.publish(client, 1, 0)
        await self.until(lambda: self.record() == [first], "the first one is handled")
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        second = await self.publish(client, 1, 1)
        process.send_signal(signal.SIGCONT)
        took = await self.until(lambda: self.record() == [first, second], "the second as well")
        self.assertLess(took, 2)

    async def test_a_signal_ends_it_after_what_is_in_hand(self) -> None:
        client = await self.make_stream()
        program = self.directory / "program.py"
        program.write_text(
            "import asyncio, sys\n"
            "from coordinator_client import Settings, changes, run\n"
            "async def handle(change):\n"
            "    print('begun', flush=True)\n"
            "    await asyncio.sleep(0.5)\n"
            "    print('done', flush=True)\n"
            "run(changes(durable='signal', handler=handle), settings=Settings(url=sys.argv[1]))\n"
        )
        await self.publish(client, 1, 0)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), self.broker.url, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        self.assertEqual(await process.stdout.readline(), b"begun\n")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(await process.stdout.read(), b"done\n")
        self.assertEqual(await process.wait(), 0)
        info = await client.jetstream().consumer_info(STREAM, "signal")
        self.assertEqual((info.num_ack_pending, info.num_pending), (0, 0))
