"""Two programs that share a durable consumer, against a real broker."""

from __future__ import annotations

import asyncio
import unittest
from collections import defaultdict
from typing import Any

from coordinator_client import Change, Settings, changes
from coordinator_client.hand import Standing
from coordinator_client.sharing import Sharing
from support import STREAM, BrokerCase


class TwoPrograms(BrokerCase):
    async def test_two_share_a_consumer_and_keep_the_order(self) -> None:
        client = await self.make_stream()
        handled: dict[int, list[int]] = defaultdict(list)
        shares: dict[str, int] = defaultdict(int)
        at_work: list[int] = []
        at_once: list[int] = []

        def handler(name: str) -> Any:
            async def handle(change: Change) -> None:
                number = change.issue.number
                if number in at_work:
                    at_once.append(number)
                at_work.append(number)
                await asyncio.sleep(0.002)
                at_work.remove(number)
                handled[number].append(int(change.issue.title.split()[-1]))
                shares[name] += 1

            return handle

        for name in ("a", "b"):
            subscriber = self.start(changes(durable="two", handler=handler(name)))
            await self.until(subscriber.consuming.is_set, "it consumes")
        for count in range(10):
            for number in range(4):
                await self.publish(client, number, count)
        await self.until(lambda: sum(map(len, handled.values())) >= 40, "all are handled", 30)
        await self.until_acked(client, "two")
        self.assertEqual(handled, {number: list(range(10)) for number in range(4)})
        self.assertEqual(at_once, [])
        self.assertEqual(set(shares), {"a", "b"})

    async def test_what_another_one_has_in_hand_is_not_taken_from_it_after_a_restart(self) -> None:
        client = await self.make_stream()
        door, through = await self.door()
        go_on = asyncio.Event()
        held: list[str] = []
        handled: list[tuple[str, str]] = []

        def handler(name: str) -> Any:
            async def handle(change: Change) -> None:
                handled.append((name, change.message.id))
                if name == "late":
                    held.append(change.message.id)
                    await go_on.wait()

            return handle

        # Whose looks at the consumer have come, by the first tokens of where they are answered.
        looks: dict[str, int] = defaultdict(int)

        async def note(question: Any) -> None:
            looks[".".join(question.reply.split(".")[:2])] += 1

        await client.subscribe(f"$JS.API.CONSUMER.INFO.{STREAM}.two", cb=note)
        early = self.start(changes(durable="two", handler=handler("early")))
        await self.until(early.consuming.is_set, "the first one consumes")
        late = self.start(changes(durable="two", handler=handler("late")), Settings(url=through))
        await self.until(late.consuming.is_set, "the second one consumes")
        looks.clear()
        await self.until(lambda: sum(n > 2 for n in looks.values()) > 1, "both have looked")
        for number in range(1, 20):
            if not held:
                await self.publish(client, number, 0)
                await self.until(lambda number=number: len(handled) == number, "it is begun")
        [taken] = held
        await self.until(lambda: len(early._hand) == 0, "the other one has nothing in hand")
        # The broker is back for the first one, and not for the second one, who works on.
        door.shut()
        self.broker.stop()
        self.broker.start()
        client = await self.admin()
        await self.until(early.consuming.is_set, "the first one consumes again")
        last = await self.publish(client, 50, 0)
        sequence = (await client.jetstream().stream_info(STREAM)).state.last_seq

        async def is_out() -> bool:
            info = await client.jetstream().consumer_info(STREAM, "two")
            return bool(info.delivered.stream_seq >= sequence)

        # What it had asked for again would have come before that.
        while not await is_out():
            await asyncio.sleep(0.01)
        door.reopen()
        await self.until(late.consuming.is_set, "the second one consumes again")
        go_on.set()
        await self.until(lambda: ("early", last) in handled, "what came behind it is handled")
        await self.until_acked(client, "two")
        self.assertEqual([name for name, each in handled if each == taken], ["late"])


class Seen(unittest.TestCase):
    def test_another_one_is_seen_by_its_request_and_gone_after_many_looks_without(self) -> None:
        sharing = Sharing()
        self.assertTrue(sharing.is_alone)
        self.assertFalse(sharing.look(standing(waiting=1), 1, 0), "a request of ours")
        self.assertTrue(sharing.look(standing(waiting=2), 1, 0), "it is new")
        self.assertFalse(sharing.look(standing(waiting=1), 0, 0))
        for _ in range(44):
            self.assertFalse(sharing.look(standing(waiting=1), 1, 0))
        # It asks for nothing, and has something.
        self.assertFalse(sharing.look(standing(unacked=2), 1, 1))
        self.assertFalse(sharing.is_alone)
        self.assertFalse(sharing.look(standing(unacked=1), 1, 1))
        self.assertTrue(sharing.is_alone)


def standing(waiting: int = 0, unacked: int = 0) -> Standing:
    return Standing(delivered=5, last_sequence=5, floor=0, unacked=unacked, waiting=waiting)
