"""Whether another program uses the same durable consumer.

What was lost on the way is asked for by its sequence. What another program has in hand must not be:
both would handle it at once. The broker says neither who is there nor who has what, but how many
requests for messages wait. So it is asked that once a second.
"""

from __future__ import annotations

from .hand import Standing

#: Looks in a row without a sign of another program after which it is gone. A request of ours over a
#: connection that the broker does not know to be dead waits for 30 s.
_MANY = 45


class Sharing:
    """What was seen of other programs."""

    def __init__(self) -> None:
        # Looks in a row without a sign of one.
        self._quiet = _MANY

    @property
    def is_alone(self) -> bool:
        """Whether no other program has anything in hand, as far as was seen."""
        return self._quiet >= _MANY

    def look(self, standing: Standing, mine: int, here: int) -> bool:
        """Takes in what the broker says, while at most `mine` requests of ours wait there, and
        `here` of what it has given out is in hand. Returns whether another program is new."""
        if standing.waiting > mine:
            was_alone = self.is_alone
            self._quiet = 0
            return was_alone
        # It may hold something without asking for more.
        if standing.unacked <= here:
            self._quiet += 1
        return False
