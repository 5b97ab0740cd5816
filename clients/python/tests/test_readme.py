"""The first subscriber of both READMEs, run as it is written against `coordinator up`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COORDINATOR = Path(os.environ.get("COORDINATOR", ROOT / "target" / "debug" / "coordinator"))


def first_program(readme: Path) -> str:
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    return str(next(block for block in blocks if "run(" in block))


def is_free(port: int) -> bool:
    with socket.socket() as taken:
        return taken.connect_ex(("127.0.0.1", port)) != 0


@unittest.skipUnless(COORDINATOR.is_file(), "coordinator is not built")
class Readme(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        # A session of somebody else may have the usual port. Then the program is told another one.
        self.usual = is_free(4222)
        arguments = ["up", "--port", "0", "--operator-port", "0"]
        self.coordinator = await self.start(
            str(COORDINATOR), *arguments, *([] if self.usual else ["--nats-port", "0"])
        )
        output = await self.until(self.coordinator, b"coordinator runs")
        self.url = re.findall(rb'"nats_url":"([^"]+)"', output)[0].decode()

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )
        self.addAsyncCleanup(self.end, process)
        return process

    async def end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.read(), 30)
        await process.wait()

    async def until(self, process: asyncio.subprocess.Process, text: bytes) -> bytes:
        assert process.stdout is not None
        output = b""
        while text not in output:
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            if not line:
                self.fail(f"{text!r} is not in {output.decode()}")
            output += line
        return output

    async def send(self, *arguments: str) -> None:
        process = await self.start(str(COORDINATOR), "send", *arguments)
        self.assertEqual(await process.wait(), 0)

    async def test_the_first_subscribers_run_as_they_are_written(self) -> None:
        await self.send("assigned", "--assignee", "bot")
        texts = {
            first_program(ROOT / "README.md"),
            first_program(ROOT / "clients/python/README.md"),
        }
        for text in texts:
            if not self.usual:
                text = text.replace("Settings(", f'Settings(url="{self.url}", ')
            self.assertLessEqual(len([line for line in text.splitlines() if line]), 5)
            (self.directory / "first.py").write_text(text)
            process = await self.start(sys.executable, "first.py")
            await self.until(process, b"assigned acme/widgets#")
            await self.end(process)
            self.assertEqual(process.returncode, 0)
            await self.send("closed", "--assignee", "bot")
            # Told while it was away.
            process = await self.start(sys.executable, "first.py")
            output = await self.until(process, b"closed acme/widgets#")
            self.assertNotIn(b"assigned", output.replace(b"unassigned", b""))


if __name__ == "__main__":
    unittest.main()
