"""Starts a process when the bot is assigned to an issue, and stops it when it is unassigned or the
issue is closed or deleted.

    NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… python agent.py LOGIN COMMAND [ARGUMENT …]

The change comes as JSON on the process's standard input. One process an issue. When this program is
stopped, it stops its processes, and starts none again by itself: what runs is not kept. If several
machines, leases or limits are wanted, `coordinator react` has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys

from coordinator_client import Change, ChangeKind, Settings, changes, serve

GRACE_SECONDS = 10


class Agents:
    def __init__(self, login: str, command: list[str]) -> None:
        self._login = login.lower()
        self._command = command
        self._running: dict[int, asyncio.subprocess.Process] = {}

    async def handle(self, change: Change) -> None:
        """Compares what should be with what is, so that the same change again does nothing."""
        assigned = self._login in (login.lower() for login in change.assignees)
        wanted = assigned and change.issue.state == "open" and change.kind != ChangeKind.DELETED
        process = self._running.get(change.issue.id)
        if process is not None and process.returncode is not None:
            del self._running[change.issue.id]
            process = None
        if wanted and process is None:
            added = change.kind == ChangeKind.ASSIGNED and self._login in (
                login.lower() for login in change.added
            )
            if added or change.kind == ChangeKind.REOPENED:
                await self._start(change)
        elif not wanted and process is not None:
            await self._stop(change.issue.id, process)

    async def _start(self, change: Change) -> None:
        # The title and the body are somebody else's text: on the input, never in arguments.
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "COORDINATOR_ISSUE": change.issue.ref},
        )
        self._running[change.issue.id] = process
        print(f"started {process.pid} for {change.issue.ref}", flush=True)
        assert process.stdin is not None
        # It may have ended, or read nothing.
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(change.raw).encode())
            await process.stdin.drain()
        process.stdin.close()

    async def _stop(self, issue: int, process: asyncio.subprocess.Process) -> None:
        """TERM to the whole group, KILL after a while."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except asyncio.TimeoutError:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._running.pop(issue, None)
        print(f"stopped {process.pid}", flush=True)

    async def stop_all(self) -> None:
        running = list(self._running.items())
        await asyncio.gather(*(self._stop(issue, process) for issue, process in running))


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agents = Agents(sys.argv[1], sys.argv[2:])
    subscription = changes(durable="agent", handler=agents.handle, start="new")
    try:
        await serve(subscription, settings=Settings.from_environment(), stop=stop)
    finally:
        await agents.stop_all()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main())
