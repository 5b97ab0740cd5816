from __future__ import annotations

import random
import unittest
from typing import Optional

from coordinator_client.hand import Hand, Held, Standing


def held(sequence: int, lane: object, message_id: Optional[str] = None) -> Held:
    return Held(sequence, message_id or f"m{sequence}", f"reply.{sequence}", lane, None, 1)


def sequences(found: list[Held]) -> list[int]:
    return [each.sequence for each in found]


def opened() -> Hand:
    hand = Hand()
    hand.close()
    assert hand.look(Standing(delivered=0, last_sequence=0, floor=0, unacked=0))
    return hand


class Lanes(unittest.TestCase):
    def test_one_of_an_issue_at_a_time_and_other_issues_go_on(self) -> None:
        hand = opened()
        for sequence, lane in ((1, "a"), (2, "b"), (3, "a")):
            self.assertFalse(hand.count(sequence, sequence))
            hand.take(held(sequence, lane))
        self.assertEqual(sequences(hand.ready()), [1, 2])
        first = hand.get(1, "m1")
        assert first is not None
        first.running = True
        self.assertEqual(sequences(hand.ready()), [2])
        hand.settle(first, b"+ACK")
        self.assertEqual(sequences(hand.ready()), [2, 3])

    def test_a_failed_head_lets_nothing_of_its_issue_pass(self) -> None:
        hand = opened()
        for sequence in (1, 2):
            hand.count(sequence, sequence)
            hand.take(held(sequence, "a"))
        first = hand.get(1, "m1")
        assert first is not None
        first.waiting = True
        self.assertEqual(hand.ready(), [])
        self.assertIsNone(hand.head("a"))

    def test_the_same_sequence_under_another_id_is_another_message(self) -> None:
        hand = opened()
        hand.take(held(1, "a"))
        self.assertIsNone(hand.get(1, "other"))
        hand.take(held(1, "b", "other"))
        self.assertEqual([each.lane for each in hand], ["b"])
        self.assertEqual(len(hand), 1)


class Closed(unittest.TestCase):
    def test_a_skipped_count_closes_it_until_the_broker_counts_no_more_than_is_here(self) -> None:
        hand = opened()
        self.assertFalse(hand.count(1, 1))
        hand.take(held(1, "a"))
        self.assertTrue(hand.count(3, 3))
        hand.take(held(3, "a"))
        # 2 is missing; 1 comes before it.
        self.assertEqual(sequences(hand.ready()), [1])
        self.assertFalse(hand.look(Standing(delivered=3, last_sequence=3, floor=0, unacked=3)))
        one = hand.get(1, "m1")
        assert one is not None
        hand.settle(one, b"+ACK")
        self.assertEqual(hand.ready(), [])
        self.assertFalse(hand.count(2, 4))
        hand.take(held(2, "a"))
        self.assertTrue(hand.look(Standing(delivered=4, last_sequence=3, floor=1, unacked=2)))
        self.assertEqual(sequences(hand.ready()), [2])

    def test_what_comes_meanwhile_does_not_stand_in_for_what_is_missing(
        self,
    ) -> None:
        hand = opened()
        hand.count(1, 1)
        hand.count(3, 3)
        hand.take(held(3, "a"))
        hand.count(4, 4)
        hand.take(held(4, "a"))
        # Told when 4 was not out yet: 2 and 3 are not acked.
        self.assertFalse(hand.look(Standing(delivered=3, last_sequence=3, floor=1, unacked=2)))

    def test_a_broker_that_forgot_what_it_gave_out_is_waited_for(self) -> None:
        hand = opened()
        hand.count(5, 5)
        hand.take(held(5, "a"))
        hand.close()
        forgot = Standing(delivered=3, last_sequence=3, floor=3, unacked=0, undelivered=2)
        self.assertFalse(hand.look(forgot))
        again = Standing(delivered=5, last_sequence=5, floor=4, unacked=1)
        self.assertTrue(hand.look(again))

    def test_a_stream_that_lost_its_end_is_not_waited_for(self) -> None:
        hand = opened()
        hand.count(5, 5)
        hand.take(held(5, "a"))
        hand.close()
        self.assertTrue(hand.look(Standing(delivered=3, last_sequence=3, floor=3, unacked=0)))

    def test_where_to_go_on_if_the_consumer_is_made_anew(self) -> None:
        hand = opened()
        for sequence in (1, 2, 3):
            hand.count(sequence, sequence)
            hand.take(held(sequence, sequence))
        first = hand.get(1, "m1")
        assert first is not None
        hand.settle(first, b"+ACK")
        self.assertEqual(hand.resume_at(), 2)
        for each in list(hand):
            hand.settle(each, b"+ACK")
        self.assertEqual(hand.resume_at(), 4)

    def test_what_to_tell_again_and_what_to_ask_for_again(self) -> None:
        hand = opened()
        for sequence in (1, 2, 4):
            hand.count(sequence, sequence)
            hand.take(held(sequence, sequence))
        for sequence in (1, 2):
            each = hand.get(sequence, f"m{sequence}")
            assert each is not None
            hand.settle(each, b"+ACK")
        hand.close()
        standing = Standing(delivered=6, last_sequence=6, floor=1, unacked=4)
        hand.look(standing)
        self.assertEqual([settled.id for settled in hand.untold()], ["m2"])
        self.assertEqual(hand.unknown(standing, 100), [3, 5, 6])
        self.assertEqual(hand.unknown(standing, 2), [])


class Model(unittest.TestCase):
    """A broker whose deliveries are lost and given out again, against the order of each issue."""

    def test_no_order_is_lost_whatever_is_lost_on_the_way(self) -> None:
        for seed in range(300):
            with self.subTest(seed=seed):
                self.run_once(random.Random(seed))

    def run_once(self, chance: random.Random) -> None:
        total = chance.randint(1, 40)
        lanes = {sequence: chance.randint(1, 4) for sequence in range(1, total + 1)}
        unsent = list(range(1, total + 1))
        unacked: set[int] = set()
        lost: list[int] = []
        acked: set[int] = set()
        delivered = last = 0
        handled: list[int] = []
        hand = Hand()
        hand.close()

        def standing() -> Standing:
            floor = min(unacked, default=last + 1) - 1
            return Standing(delivered, last, floor, len(unacked), len(unsent))

        def ack(each: Held) -> None:
            handled.append(each.sequence)
            hand.settle(each, b"+ACK")
            acked.add(each.sequence)
            unacked.discard(each.sequence)

        for _ in range(5000):
            if len(acked) == total:
                break
            act = chance.random()
            if act < 0.4 and (unsent or lost):
                # The broker gives out again before it gives out more, or after.
                again = lost and (not unsent or chance.random() < 0.3)
                sequence = lost.pop(0) if again else unsent.pop(0)
                delivered += 1
                last = max(last, sequence)
                unacked.add(sequence)
                if chance.random() < 0.15:
                    lost.append(sequence)
                    continue
                hand.count(sequence, delivered)
                if hand.get(sequence, f"m{sequence}") is None:
                    hand.take(held(sequence, lanes[sequence]))
            elif act < 0.45:
                hand.close()
            elif act < 0.7 and not hand.is_open:
                hand.look(standing())
            else:
                ready = hand.ready()
                if ready:
                    ack(chance.choice(ready))
        self.assertEqual(sorted(handled), list(range(1, total + 1)))
        for lane in set(lanes.values()):
            mine = [sequence for sequence in handled if lanes[sequence] == lane]
            self.assertEqual(mine, sorted(mine))
