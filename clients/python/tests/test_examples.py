"""The examples, as programs against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from support import ROOT, STREAM, BrokerCase

EXAMPLES = ROOT / "clients" / "python" / "examples"
BOT = {"added": ["bot"], "added_ids": [4], "assignees": ["bot"], "assignee_ids": [4]}


class Examples(BrokerCase):
    async def begin(self, program: str, *arguments: str, **environment: str) -> Any:
        """Starts it, and waits until it has its consumer."""
        client = await self.make_stream()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / f"{program}.py"),
            *arguments,
            cwd=self.directory,
            env={**os.environ, "NATS_URL": self.broker.url, **environment},
        )
        self.addAsyncCleanup(self.end, process)
        for _ in range(500):
            with contextlib.suppress(Exception):
                await client.jetstream().consumer_info(STREAM, program)
                return client, process
            await asyncio.sleep(0.02)
        self.fail("it does not consume")

    async def end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        self.assertEqual(await asyncio.wait_for(process.wait(), 15), 0)

    async def tell(self, client: Any, kind: str, **fields: Any) -> None:
        def edit(value: Any) -> None:
            value.update(kind=kind, added=[], added_ids=[], assignees=[], assignee_ids=[])
            value["issue"]["state"] = "closed" if kind == "closed" else "open"
            value.update(fields)

        await self.publish(client, 7, 0, edit)

    async def test_a_board(self) -> None:
        file = self.directory / "board.json"
        client, _ = await self.begin("board", str(file))

        def board() -> Any:
            return json.loads(file.read_text()) if file.exists() else None

        await self.tell(client, "assigned", **BOT)
        await self.until(lambda: board() and board()["1.7"]["assignees"] == ["bot"], "it is there")
        await self.tell(client, "closed")
        await self.until(lambda: board() == {}, "it is gone")

    async def test_a_chat(self) -> None:
        posts: list[str] = []

        class Chat(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                posts.append(json.loads(self.rfile.read(size))["text"])
                self.send_response(503 if len(posts) == 1 else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
        Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        client, _ = await self.begin("chat", CHAT_URL=url)
        await self.tell(client, "assigned", **BOT)
        # The first time it was refused for a moment.
        await self.until(lambda: len(posts) == 2, "it is posted")
        self.assertIn("acme/repo.1#7 Change 0: assigned bot", posts[1])

    async def test_an_agent(self) -> None:
        command = "trap 'rm $AGENT_FILE; exit' TERM; cat > $AGENT_FILE; sleep 60 & wait"
        file = self.directory / "input"
        arguments = ("Bot", "sh", "-c", command)
        client, _ = await self.begin("agent", *arguments, AGENT_FILE=str(file))
        await self.tell(client, "assigned", **BOT)

        def given() -> Any:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(file.read_text())["issue"]["number"]

        await self.until(lambda: given() == 7, "it runs and has the change")
        await self.tell(client, "unassigned", removed=["bot"], removed_ids=[4])
        await self.until(lambda: not file.exists(), "it was told to stop")
