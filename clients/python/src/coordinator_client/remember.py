"""Ids of messages that were handled, so that nothing is done twice.

What each kind guarantees, over a process that is killed at any moment:

| | the same message is handled again |
|---|---|
| `InMemory` | after a restart, if it was killed before the broker had taken the ack in |
| `InSqlite` | if it was killed between the handler's end and the commit of the id that follows |
| `WithSqlite` | its effect never, as far as the effect is in that database |
| one of your own | as far as your `handling` puts effect and id into one transaction |
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union
from weakref import WeakSet

T = TypeVar("T")


class Remember(ABC):
    """Keeps ids of handled messages. Write one of your own for another database."""

    @abstractmethod
    async def seen(self, message_id: str) -> bool:
        """Whether the message was handled before. Then it is acked, and not handled."""

    @abstractmethod
    def handling(self, message_id: str) -> AbstractAsyncContextManager[Any]:
        """The handler runs within this. What it yields is the handler's `message.transaction`.

        Left without an exception, the id must be kept when it is left: the ack follows. Left with
        one, nothing of the attempt may be kept, nor of what a thread of the handler still does.
        """

    async def open(self) -> None:  # noqa: B027 - not every kind has something to open
        """Called once, before the first message."""

    async def close(self) -> None:  # noqa: B027
        """Called once, after the last message."""


class InMemory(Remember):
    """The last ids, as long as the process lives."""

    def __init__(self, most: int = 100_000) -> None:
        """`most` is how many ids are kept, of some 150 bytes each."""
        self._most = most
        self._ids: OrderedDict[str, None] = OrderedDict()

    async def seen(self, message_id: str) -> bool:
        return message_id in self._ids

    @asynccontextmanager
    async def handling(self, message_id: str) -> AsyncIterator[None]:
        yield None
        self._ids[message_id] = None
        while len(self._ids) > self._most:
            self._ids.popitem(last=False)


class _Cursor(sqlite3.Cursor):
    """A cursor of a `_Connection`."""

    connection: _Connection

    def execute(self, *args: Any) -> Any:
        with self.connection.turn():
            return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        with self.connection.turn():
            return super().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        with self.connection.turn():
            return super().executescript(*args)

    def fetchone(self) -> Any:
        with self.connection.turn():
            return super().fetchone()

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        with self.connection.turn():
            return super().fetchmany(*args, **kwargs)

    def fetchall(self) -> Any:
        with self.connection.turn():
            return super().fetchall()

    def __next__(self) -> Any:
        with self.connection.turn():
            return super().__next__()


class _Connection(sqlite3.Connection):
    """A connection that can be ended while another thread is at it.

    A handler in a thread cannot be stopped. After a mere rollback each of its further statements
    would be committed by itself, and a connection that is closed under a statement crashes Python.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turn = threading.RLock()
        self._ended = False
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, factory: Any = _Cursor) -> Any:
        with self.turn():
            cursor = super().cursor(factory)
            self._cursors.add(cursor)
            return cursor

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        return self.cursor().executescript(*args)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One thread is within at a time, and none after the end."""
        with self._turn:
            if self._ended:
                raise sqlite3.ProgrammingError("the transaction is over")
            yield

    def end(self) -> None:
        """Rolls back and closes it. Whoever is still at it gets an error."""
        self._ended = True
        # A handler may have closed it.
        with suppress(sqlite3.ProgrammingError):
            self.interrupt()
        with self._turn, closing(self), suppress(sqlite3.ProgrammingError):
            # What is closed under an open cursor is rolled back only when that is gone.
            for cursor in list(self._cursors):
                cursor.close()


class _Database:
    """One connection to SQLite, used by one thread of its own."""

    def __init__(self, file: Union[str, Path], keep: float) -> None:
        self._file = str(file)
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "coordinator-client-sqlite")
        self._connection: Optional[_Connection] = None
        self._cleared = 0.0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(self.connection()))

    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            # Whoever uses it takes turns; a handler's turn may be in another thread.
            connection = sqlite3.connect(
                self._file,
                timeout=30,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            connection.execute("PRAGMA journal_mode = WAL")
            # What is committed is on disk, also over a power failure.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS coordinator_handled "
                "(id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"
            )
            connection.execute(
                "CREATE INDEX IF NOT EXISTS coordinator_handled_at ON coordinator_handled (at)"
            )
            self._connection = connection
        return self._connection

    def insert(self, connection: sqlite3.Connection, ids: list[str]) -> None:
        """Within a transaction. Forgets what is older than it is kept, once a minute."""
        now = time.time()
        connection.executemany(
            "INSERT OR IGNORE INTO coordinator_handled VALUES (?, ?)", [(i, now) for i in ids]
        )
        if now - self._cleared > 60:
            self._cleared = now
            connection.execute("DELETE FROM coordinator_handled WHERE at < ?", (now - self._keep,))

    @staticmethod
    def has(connection: sqlite3.Connection, message_id: str) -> bool:
        found = connection.execute("SELECT 1 FROM coordinator_handled WHERE id = ?", (message_id,))
        return found.fetchone() is not None

    async def end(self) -> None:
        """Rolls back and closes the connection, whoever uses it. The next one makes another."""

        def end() -> None:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.end()

        await asyncio.get_running_loop().run_in_executor(self._thread, end)

    async def close(self) -> None:
        await self.end()
        self._thread.shutdown()


#: Streams hold messages for 14 days unless told otherwise.
_KEEP_SECONDS = 15 * 24 * 3600.0


class InSqlite(Remember):
    """Ids in a file, written after the handler has returned and before the ack. Ids of handlers
    that end at the same time are committed together."""

    def __init__(self, file: Union[str, Path], keep_seconds: float = _KEEP_SECONDS) -> None:
        self._database = _Database(file, keep_seconds)
        self._unwritten: list[tuple[str, asyncio.Future[None]]] = []
        self._writer: Optional[asyncio.Task[None]] = None

    async def open(self) -> None:
        await self._database.run(lambda connection: None)

    async def seen(self, message_id: str) -> bool:
        return await self._database.run(lambda c: _Database.has(c, message_id))

    @asynccontextmanager
    async def handling(self, message_id: str) -> AsyncIterator[None]:
        yield None
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.append((message_id, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write())
        await written

    async def _write(self) -> None:
        while self._unwritten:
            batch, self._unwritten = self._unwritten, []
            ids = [message_id for message_id, _ in batch]
            try:
                await self._database.run(lambda c, ids=ids: self._commit(c, ids))  # type: ignore[misc]
            except Exception as error:
                for _, written in batch:
                    if not written.done():
                        written.set_exception(error)
            else:
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)

    def _commit(self, connection: sqlite3.Connection, ids: list[str]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._database.insert(connection, ids)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    async def close(self) -> None:
        await self._database.close()


class WithSqlite(Remember):
    """Effect and id in one transaction: the handler writes to `message.transaction`, a
    `sqlite3.Connection`, and neither commits nor rolls back. SQLite has one writer, so one handler
    runs at a time. Once its attempt is over, whatever a handler's thread still asks of the
    connection raises `sqlite3.Error`."""

    def __init__(self, file: Union[str, Path], keep_seconds: float = _KEEP_SECONDS) -> None:
        self._database = _Database(file, keep_seconds)
        self._turn: Optional[asyncio.Lock] = None

    def _one_at_a_time(self) -> asyncio.Lock:
        # Before Python 3.10 a lock belongs to the loop that runs when it is made.
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def open(self) -> None:
        await self._database.run(lambda connection: None)

    async def seen(self, message_id: str) -> bool:
        async with self._one_at_a_time():
            return await self._database.run(lambda c: _Database.has(c, message_id))

    @asynccontextmanager
    async def handling(self, message_id: str) -> AsyncIterator[sqlite3.Connection]:
        async with self._one_at_a_time():
            try:
                await self._database.run(lambda c: c.execute("BEGIN IMMEDIATE"))
                yield self._database.connection()
                await self._database.run(lambda c: self._database.insert(c, [message_id]))
                await self._database.run(lambda c: c.execute("COMMIT"))
            except BaseException:
                # A thread of the handler may go on.
                await asyncio.shield(self._database.end())
                raise

    async def close(self) -> None:
        await self._database.close()
