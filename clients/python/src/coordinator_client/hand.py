"""What this process has in hand, and what of it may be handled now. It does no IO.

Messages of one issue are a lane: they are handled one after the other, in the order of the stream.
That alone keeps no order once a message was delivered and did not get here, because the broker or
an earlier process died: the broker gives it out again only after its ack wait, and what follows of
the same issue would come first. So the hand is *closed* whenever a delivery may be missing:

- at the start, and after each connection, until the broker says that all it has given out and that
  is not acked is here;
- when the consumer's count of deliveries skips a number.

While it is closed, a message may be handled only if everything before it in the stream is known:
acked, or here.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

#: Settled messages that are remembered, to ack them again if the broker did not take the ack in.
_MOST_SETTLED = 20_000


@dataclass(eq=False)
class Held:
    """A message in hand."""

    sequence: int
    id: str
    #: Subject of its acks, of the last delivery.
    reply: str
    lane: object
    content: Any
    delivered: int
    running: bool = False
    #: A handler has failed, and is called again later.
    waiting: bool = False
    attempts: int = 0


@dataclass(frozen=True)
class Settled:
    """A message that came to its end here, and how the broker was told."""

    id: str
    reply: str
    told: bytes


@dataclass(frozen=True)
class Standing:
    """What the broker says of the consumer at one moment."""

    #: Counts of deliveries: the last one, and how far all are acked.
    delivered: int
    #: Sequences in the stream: the last one given out, and up to where all are acked.
    last_sequence: int
    floor: int
    #: Messages given out and not acked.
    unacked: int
    #: Messages that are not given out yet.
    undelivered: int = 0
    #: Requests for messages that wait at the broker.
    waiting: int = 0


class Hand:
    """All messages in hand."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._lanes: dict[object, list[int]] = {}
        self._settled: OrderedDict[int, Settled] = OrderedDict()
        self._open = False
        # Count of the last delivery seen, and of the last one that is missing.
        self._counted: Optional[int] = None
        self._missing = 0
        self._floor = 0
        self._last_sequence = 0
        # Highest sequence in hand when it was closed.
        self._before = 0

    @property
    def is_open(self) -> bool:
        """Whether no delivery is missing."""
        return self._open

    @property
    def last_sequence(self) -> int:
        """Highest sequence that was seen."""
        return self._last_sequence

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(sorted(self._held.values(), key=lambda held: held.sequence))

    def get(self, sequence: int, message_id: str) -> Optional[Held]:
        """The message in hand. The same sequence under another id is another message: the broker
        has lost the end of its stream."""
        held = self._held.get(sequence)
        return held if held is not None and held.id == message_id else None

    def settled(self, sequence: int, message_id: str) -> Optional[Settled]:
        """How the message was settled, if it was."""
        settled = self._settled.get(sequence)
        return settled if settled is not None and settled.id == message_id else None

    def count(self, sequence: int, delivery: int) -> bool:
        """Counts a delivery. Returns whether one before it is missing; then the hand is closed."""
        expected = None if self._counted is None else self._counted + 1
        self._counted = delivery
        self._last_sequence = max(self._last_sequence, sequence)
        if expected is None or delivery <= expected:
            return False
        self._missing = delivery - 1
        self._shut()
        return True

    def _shut(self) -> None:
        self._open = False
        self._before = max(self._held, default=0)

    def take(self, held: Held) -> None:
        """Takes a message in hand."""
        other = self._held.get(held.sequence)
        if other is not None:
            self._remove(other)
        self._held[held.sequence] = held
        bisect.insort(self._lanes.setdefault(held.lane, []), held.sequence)

    def close(self) -> None:
        """A delivery may be missing from now on."""
        self._shut()
        self._counted = None

    def look(self, standing: Standing) -> bool:
        """Takes in what the broker says. Returns whether the hand is open now.

        What is in hand and was given out by then is not acked, since nobody else acks it. So if
        the broker counts no more than that, nothing is missing. A broker that was killed may not
        remember what it gave out last: then it gives that out again, and what is in hand waits
        until it has.
        """
        if self._counted is None:
            self._counted = standing.delivered
            self._missing = standing.delivered
        self._floor = standing.floor
        here = self.here(standing)
        caught_up = standing.last_sequence >= self._before or standing.undelivered == 0
        if here >= standing.unacked and self._missing <= standing.delivered and caught_up:
            self._open = True
        return self._open

    def here(self, standing: Standing) -> int:
        """How many of what was given out by then are in hand."""
        return sum(1 for sequence in self._held if sequence <= standing.last_sequence)

    def _first_unknown(self) -> int:
        """First sequence above the floor that is neither here nor settled here."""
        sequence = self._floor + 1
        while sequence in self._held or sequence in self._settled:
            sequence += 1
        return sequence

    def ready(self) -> list[Held]:
        """Heads of all lanes that may be handled now and are not, in order."""
        limit = None if self._open else self._first_unknown()
        heads = (self._held[sequences[0]] for sequences in self._lanes.values())
        found = [
            held
            for held in heads
            if not held.running and not held.waiting and (limit is None or held.sequence < limit)
        ]
        return sorted(found, key=lambda held: held.sequence)

    def head(self, lane: object) -> Optional[Held]:
        """Head of one lane, if it may be handled now and is not."""
        sequences = self._lanes.get(lane)
        if not sequences:
            return None
        held = self._held[sequences[0]]
        if held.running or held.waiting:
            return None
        if not self._open and held.sequence >= self._first_unknown():
            return None
        return held

    def settle(self, held: Held, told: bytes) -> bool:
        """The message is at its end. Returns whether the broker is to be told: not if another
        message has its place by now, or the stream is another one."""
        if not self._remove(held):
            return False
        self.mark(held.sequence, Settled(held.id, held.reply, told))
        return True

    def mark(self, sequence: int, settled: Settled) -> None:
        """A message that never came in hand is at its end."""
        self._settled[sequence] = settled
        self._settled.move_to_end(sequence)
        while len(self._settled) > _MOST_SETTLED:
            self._settled.popitem(last=False)

    def _remove(self, held: Held) -> bool:
        if self._held.get(held.sequence) is not held:
            return False
        del self._held[held.sequence]
        lane = self._lanes[held.lane]
        lane.remove(held.sequence)
        if not lane:
            del self._lanes[held.lane]
        return True

    def forget(self) -> None:
        """The stream is another one: its sequences mean other messages."""
        self._held.clear()
        self._lanes.clear()
        self._settled.clear()
        self._floor = self._last_sequence = 0
        self.close()

    def drop(self, held: Held) -> None:
        """Puts a message out of hand that is not at its end."""
        self._remove(held)

    def untold(self) -> list[Settled]:
        """Messages that are settled here and not acked as far as the broker's floor tells."""
        return [s for sequence, s in self._settled.items() if sequence > self._floor]

    def unknown(self, standing: Standing, most: int) -> list[int]:
        """Sequences that may have been given out and are neither here nor settled here. Empty if
        there would be more than `most`."""
        first, last = standing.floor + 1, standing.last_sequence
        if last - first + 1 > most:
            return []
        return [
            sequence
            for sequence in range(first, last + 1)
            if sequence not in self._held and sequence not in self._settled
        ]

    def resume_at(self) -> int:
        """First sequence that is not known to be settled, for a consumer that is made anew."""
        if not self._open:
            return self._floor + 1
        lowest = min(self._held, default=self._last_sequence + 1)
        return max(lowest, self._floor + 1)
