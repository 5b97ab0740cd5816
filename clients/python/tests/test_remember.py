from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Callable

from coordinator_client import InMemory, InSqlite, Remember, WithSqlite


class RememberTest(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = Path(directory.name) / "ids"

    async def check(self, remember: Remember) -> None:
        await remember.open()
        self.assertFalse(await remember.seen("a"))
        with self.assertRaises(RuntimeError):
            async with remember.handling("a"):
                raise RuntimeError
        self.assertFalse(await remember.seen("a"))

        async def handle(message_id: str) -> None:
            async with remember.handling(message_id):
                await asyncio.sleep(0)

        await asyncio.gather(*(handle(f"m{n}") for n in range(50)), handle("a"))
        self.assertTrue(await remember.seen("a"))
        self.assertTrue(await remember.seen("m49"))
        await remember.close()

    async def test_all_kinds_keep_what_was_handled(self) -> None:
        for remember in (InMemory(), InSqlite(self.file), WithSqlite(f"{self.file}-2")):
            with self.subTest(kind=type(remember).__name__):
                await self.check(remember)

    async def test_memory_is_bounded(self) -> None:
        remember = InMemory(2)
        for message_id in "abc":
            async with remember.handling(message_id):
                pass
        self.assertEqual([await remember.seen(i) for i in "abc"], [False, True, True])

    async def test_a_file_outlives_the_process_and_forgets_what_is_old(self) -> None:
        await self.check(InSqlite(self.file))
        again = InSqlite(self.file)
        self.assertTrue(await again.seen("a"))
        await again.close()
        forgets = InSqlite(self.file, keep_seconds=-1)
        async with forgets.handling("b"):
            pass
        self.assertFalse(await forgets.seen("a"))
        await forgets.close()

    async def test_effect_and_id_are_one_transaction(self) -> None:
        remember = WithSqlite(self.file)
        await remember.open()
        async with remember.handling("table") as connection:
            connection.execute("CREATE TABLE effects (id TEXT)")
        with self.assertRaises(RuntimeError):
            async with remember.handling("a") as connection:
                connection.execute("INSERT INTO effects VALUES ('a')")
                raise RuntimeError
        async with remember.handling("b") as connection:
            connection.execute("INSERT INTO effects VALUES ('b')")
        await remember.close()
        found = sqlite3.connect(self.file)
        self.addCleanup(found.close)
        self.assertEqual(found.execute("SELECT id FROM effects").fetchall(), [("b",)])
        ids = found.execute("SELECT id FROM coordinator_handled ORDER BY id").fetchall()
        self.assertEqual(ids, [("b",), ("table",)])

    async def test_a_thread_that_outlives_its_attempt_leaves_nothing_behind(self) -> None:
        cursors: list[sqlite3.Cursor] = []

        def select(_: sqlite3.Connection) -> None:
            next(cursors[-1])

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO effects VALUES ('late')")

        def write_many(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT INTO effects VALUES (?)", [("late",)])

        def write_a_script(connection: sqlite3.Connection) -> None:
            connection.executescript("INSERT INTO effects VALUES ('late')")

        def write_for_seconds(connection: sqlite3.Connection) -> None:
            connection.execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000000) "
                "INSERT INTO effects SELECT 'late' FROM n WHERE i < 0"
            )

        remember = WithSqlite(self.file)
        await remember.open()
        async with remember.handling("table") as connection:
            connection.execute("CREATE TABLE effects (id TEXT)")
            connection.execute("INSERT INTO effects VALUES ('first'), ('second')")
        for late in (select, write, write_many, write_a_script, write_for_seconds):
            with self.subTest(late=late.__name__):
                begun, go_on, done = (threading.Event() for _ in range(3))
                if late is write_for_seconds:
                    go_on.set()

                def handle(
                    connection: sqlite3.Connection,
                    acts: tuple[Callable[[sqlite3.Connection], None], ...] = (late, write),
                    begun: threading.Event = begun,
                    go_on: threading.Event = go_on,
                    done: threading.Event = done,
                ) -> None:
                    connection.execute("INSERT INTO effects VALUES ('early')")
                    cursors.append(connection.execute("SELECT id FROM effects"))
                    cursors[-1].fetchone()
                    begun.set()
                    go_on.wait()
                    for act in acts:
                        with contextlib.suppress(sqlite3.Error):
                            act(connection)
                    done.set()

                async def attempt(handle: Callable[[sqlite3.Connection], None] = handle) -> None:
                    async with remember.handling("a") as connection:
                        await asyncio.to_thread(handle, connection)

                task = asyncio.ensure_future(attempt())
                await asyncio.to_thread(begun.wait)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                go_on.set()
                await asyncio.to_thread(done.wait)
                self.assertFalse(await remember.seen("a"))
                # Nor does it hold the file up.
                async with remember.handling("other") as connection:
                    ids = connection.execute("SELECT id FROM effects").fetchall()
                self.assertEqual(ids, [("first",), ("second",)])
        await remember.close()
