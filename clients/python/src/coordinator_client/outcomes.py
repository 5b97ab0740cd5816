"""What a handler raises to say what becomes of its message. Returning means that it is done."""

from __future__ import annotations

from typing import Optional


class Again(Exception):
    """Try the message again later. What follows of the same issue waits until then."""

    def __init__(self, delay: Optional[float] = None, reason: str = "") -> None:
        """`delay` is in seconds. Without one it grows with each attempt."""
        super().__init__(reason or "again")
        if delay is not None and delay < 0:
            raise ValueError("a delay is not negative")
        self.delay = delay
        self.reason = reason


class Never(Exception):
    """The message can never be handled. It is ended at the broker, which tells the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
