"""Reads and writes subjects. No other module spells a subject."""

from __future__ import annotations

from typing import Optional
from urllib.parse import unquote_to_bytes

CHANGES_STREAM = "GITEA_CHANGES"
EVENTS_STREAM = "GITEA_ISSUES"
CHANGES_PREFIX = "gitea.changes"
EVENTS_PREFIX = "gitea.issues"

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def escape(token: str) -> str:
    """Any text as one token of a subject: what is no letter, digit, `-` or `_` becomes `%XX`."""
    # A token is not empty. `%` alone is not the escape of any other text.
    return "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in token.encode("utf-8")) or "%"


def unescape(token: str) -> str:
    """The text of a token. Raises `ValueError` if it is not UTF-8."""
    return "" if token == "%" else unquote_to_bytes(token).decode("utf-8")


def pattern(
    prefix: str, kind: Optional[str], owner: Optional[str], repository: Optional[str]
) -> str:
    """A filter for subjects. `None` matches any."""
    tokens = ["*" if token is None else escape(token) for token in (kind, owner, repository)]
    while tokens and tokens[-1] == "*":
        tokens.pop()
    return ".".join([prefix, *tokens, ">"])


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that `narrow` matches is matched by `wide` as well."""
    ours, theirs = wide.split("."), narrow.split(".")
    for place, token in enumerate(ours):
        if token == ">":
            return len(theirs) > place
        if len(theirs) <= place or theirs[place] == ">":
            return False
        if token != "*" and token != theirs[place]:
            return False
    return len(ours) == len(theirs)
