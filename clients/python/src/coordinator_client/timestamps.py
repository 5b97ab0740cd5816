"""Instants as messages hold them: RFC 3339."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_RFC_3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))"
)


def parse(text: str) -> datetime:
    """Reads RFC 3339 with any offset, to the microsecond, as an instant in UTC.

    Python has no year 0. What is out of its range becomes the first or the last instant of it.
    Raises `ValueError`.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError("not a time as RFC 3339 writes it")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if year == 0:
        return datetime.min.replace(tzinfo=timezone.utc)
    micros = int((match[7] or "0")[:6].ljust(6, "0"))
    # RFC 3339 allows a leap second.
    leap = second == 60
    local = datetime(year, month, day, hour, minute, 59 if leap else second, micros, timezone.utc)
    offset = timedelta()
    if match[9]:
        offset = timedelta(hours=int(match[10]), minutes=int(match[11]))
        offset = -offset if match[9] == "-" else offset
    try:
        return local - offset + timedelta(seconds=int(leap))
    except OverflowError:
        edge = datetime.min if year == 1 else datetime.max
        return edge.replace(tzinfo=timezone.utc)
