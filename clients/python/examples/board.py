"""Keeps a board of open issues and who has them, in a JSON file.

    NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… python board.py board.json

Each change holds the issue as it is then, so the last one of each issue is all that the board
needs: handling one twice does no harm.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from coordinator_client import Change, ChangeKind, Settings, changes, run


class Board:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._issues: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    async def handle(self, change: Change) -> None:
        # The id stays when the repository is renamed.
        key = f"{change.repository.id}.{change.issue.number}"
        if change.kind == ChangeKind.DELETED or change.issue.state != "open":
            self._issues.pop(key, None)
        else:
            self._issues[key] = {
                "issue": change.issue.ref,
                "title": change.issue.title,
                "url": change.issue.url,
                "assignees": list(change.assignees),
                "labels": list(change.issue.labels),
            }
        self._write()

    def _write(self) -> None:
        """Before the ack, and as a whole: whoever reads it finds the old one or the new one."""
        new = self._file.with_suffix(".new")
        with open(new, "w") as file:
            json.dump(self._issues, file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)


if __name__ == "__main__":
    board = Board(Path(sys.argv[1]))
    run(changes(durable="board", handler=board.handle), settings=Settings.from_environment())
