"""What to subscribe to, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Callable, Optional, Union

from . import messages, subjects
from .consumer import Start, Wanted
from .errors import SettingsError, UnreadableError
from .filters import Filter, Names
from .messages import Change, ChangeKind, Event, Message
from .remember import InMemory, Remember

Content = Union[Change, Event]
#: A plain function runs in a thread, a coroutine function in the event loop.
ChangeHandler = Callable[[Change], Union[Awaitable[None], None]]
EventHandler = Callable[[Event], Union[Awaitable[None], None]]


@dataclass(frozen=True)
class Subscription:
    """Made by `changes` and `events`."""

    wanted: Wanted
    filter: Filter
    read: Callable[[bytes, Message], Content]
    handler: Callable[..., Union[Awaitable[None], None]]
    concurrency: int
    remember: Remember
    unknown_kinds: bool
    first_delay: float
    longest_delay: float
    drain_timeout: float
    take_over: bool
    on_unreadable: Optional[Callable[[UnreadableError, Message], None]]

    def skips(self, content: Content) -> bool:
        """Whether the handler is not to see this."""
        if isinstance(content, Change):
            if content.kind not in ChangeKind.ALL and not self.unknown_kinds:
                return True
        return not self.filter.wants_people(content)


def changes(
    durable: str,
    handler: ChangeHandler,
    *,
    kind: Names = None,
    owner: Names = None,
    repository: Names = None,
    login: Optional[str] = None,
    user_id: Optional[int] = None,
    unknown_kinds: bool = False,
    start: Start = "all",
    remember: Optional[Remember] = None,
    concurrency: int = 16,
    ahead: int = 1000,
    ack_wait: float = 30.0,
    first_delay: float = 1.0,
    longest_delay: float = 60.0,
    drain_timeout: float = 20.0,
    take_over: bool = False,
    on_unreadable: Optional[Callable[[UnreadableError, Message], None]] = None,
) -> Subscription:
    """A subscription to changes: who was assigned or unassigned, what was closed or reopened.

    - `durable`: name of the consumer, which keeps the place while this program is away. One program
      a name. It is created if there is none.
    - `handler`: called with each change. It returns when the change is done; it raises `Again` or
      any other exception to be called again, `Never` for what can never work.
    - `kind`, `owner`, `repository` (`widgets` or `acme/widgets`): one name or several, as Gitea
      shows them, letter by letter: for Gitea `ACME` is `acme`, but `owner="ACME"` gets nothing of
      `acme`.
    - `login`, `user_id`: only what concerns this person.
    - `unknown_kinds`: also hand over kinds that this version does not know; else they are skipped.
    - `start`: where a new consumer begins: `"all"` that the stream holds, `"new"`, a `datetime`, or
      a sequence.
    - `remember`: keeps ids, so that nothing is done twice. Default: in memory.
    - `concurrency`: most handlers at once; always one an issue.
    - `ahead`: most messages in hand; `ack_wait`: seconds after which the broker gives a message out
      again when nothing was heard of it. Both of a consumer that is created here. While a handler
      works or waits, the broker is told so.
    - `first_delay`, `longest_delay`: seconds before a failed handler is called again; they double.
    - `drain_timeout`: seconds that handlers have to finish when it is stopped.
    - `take_over`: at the start, ask at once for what an earlier life of this program had in hand,
      instead of waiting for its ack wait. Only where no other one can be running.
    - `on_unreadable`: called with what is not of the expected shape, before it is ended at the
      broker. Raise in it to stop instead.
    """
    return _subscription(
        subjects.CHANGES_STREAM,
        Filter.of(subjects.CHANGES_PREFIX, kind, owner, repository, login, user_id),
        messages.read_change,
        durable,
        handler,
        unknown_kinds,
        start,
        remember,
        concurrency,
        ahead,
        ack_wait,
        first_delay,
        longest_delay,
        drain_timeout,
        take_over,
        on_unreadable,
    )


def events(
    durable: str,
    handler: EventHandler,
    *,
    action: Names = None,
    owner: Names = None,
    repository: Names = None,
    login: Optional[str] = None,
    user_id: Optional[int] = None,
    start: Start = "all",
    remember: Optional[Remember] = None,
    concurrency: int = 16,
    ahead: int = 1000,
    ack_wait: float = 30.0,
    first_delay: float = 1.0,
    longest_delay: float = 60.0,
    drain_timeout: float = 20.0,
    take_over: bool = False,
    on_unreadable: Optional[Callable[[UnreadableError, Message], None]] = None,
) -> Subscription:
    """A subscription to events: what Gitea said, each a snapshot of an issue.

    As `changes`, with `action` in place of `kind`. Any action is handed over: they are Gitea's.
    """
    return _subscription(
        subjects.EVENTS_STREAM,
        Filter.of(subjects.EVENTS_PREFIX, action, owner, repository, login, user_id),
        messages.read_event,
        durable,
        handler,
        True,
        start,
        remember,
        concurrency,
        ahead,
        ack_wait,
        first_delay,
        longest_delay,
        drain_timeout,
        take_over,
        on_unreadable,
    )


def _subscription(
    stream: str,
    wanted: Filter,
    read: Callable[[bytes, Message], Content],
    durable: str,
    handler: Callable[..., Union[Awaitable[None], None]],
    unknown_kinds: bool,
    start: Start,
    remember: Optional[Remember],
    concurrency: int,
    ahead: int,
    ack_wait: float,
    first_delay: float,
    longest_delay: float,
    drain_timeout: float,
    take_over: bool,
    on_unreadable: Optional[Callable[[UnreadableError, Message], None]],
) -> Subscription:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", durable):
        raise SettingsError("a durable name is of letters, digits, `-` and `_`")
    if isinstance(start, str) and start not in ("all", "new"):
        raise SettingsError('start is "all", "new", a datetime or a sequence')
    if concurrency < 1 or ahead < 1:
        raise SettingsError("concurrency and ahead are at least 1")
    if ack_wait < 1:
        raise SettingsError("ack_wait is at least a second")
    if first_delay < 0 or longest_delay < first_delay or drain_timeout < 0:
        raise SettingsError("delays are not negative, and the first one is not the longest")
    return Subscription(
        wanted=Wanted(stream, durable, tuple(wanted.subjects()), start, ack_wait, ahead),
        filter=wanted,
        read=read,
        handler=handler,
        concurrency=concurrency,
        remember=InMemory() if remember is None else remember,
        unknown_kinds=unknown_kinds,
        first_delay=first_delay,
        longest_delay=longest_delay,
        drain_timeout=drain_timeout,
        take_over=take_over,
        on_unreadable=on_unreadable,
    )
