"""Posts each assignment to a chat that takes JSON at a webhook (Slack, Mattermost, Rocket.Chat, …).

NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… CHAT_URL=https://chat.example.com/hooks/… python chat.py
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

from coordinator_client import Again, Change, InSqlite, Never, Settings, changes, run


def text(change: Change) -> str:
    people = ", ".join(change.added or change.removed)
    what = f"{change.kind} {people}".strip()
    return f"{change.issue.ref} {change.issue.title}: {what} ({change.issue.url})"


def notify(change: Change) -> None:
    """A plain function runs in a thread, so it may block."""
    request = urllib.request.Request(
        os.environ["CHAT_URL"],
        data=json.dumps({"text": text(change)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:
            raise Again(reason=f"the chat answers {error.code}") from None
        raise Never(f"the chat answers {error.code}") from None
    except OSError:
        # The URL is a secret, and the error may show it.
        raise Again(reason="the chat cannot be reached") from None


if __name__ == "__main__":
    run(
        changes(
            durable="chat",
            handler=notify,
            kind=["assigned", "unassigned", "closed"],
            start="new",
            # A message may be posted twice if this is killed at the wrong moment.
            remember=InSqlite(os.environ.get("CHAT_IDS", "chat.db")),
        ),
        settings=Settings.from_environment(),
    )
