"""Typed changes and events, read from the JSON of their messages.

Fields that this version does not know are kept in `raw`. Kinds, actions and causes are open: they
are plain texts, and the names in `ChangeKind` are the ones known when this was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Callable, Optional, TypeVar

from . import timestamps
from .errors import UnreadableError, VersionError

T = TypeVar("T")

#: Newest version of either shape that is read. Fields that are added keep the version.
VERSION = 1


class ChangeKind:
    """The known kinds of changes."""

    UNASSIGNED = "unassigned"
    CLOSED = "closed"
    REOPENED = "reopened"
    ASSIGNED = "assigned"
    DELETED = "deleted"

    ALL = frozenset({UNASSIGNED, CLOSED, REOPENED, ASSIGNED, DELETED})


@dataclass(frozen=True)
class User:
    """A user. `id` is negative for Ghost (-1) and gitea-actions (-2), 0 where nobody is known."""

    id: int
    login: str


@dataclass(frozen=True)
class Repository:
    """A repository. `id` stays when it is renamed or transferred."""

    id: int
    owner: str
    name: str
    url: str
    clone_url: str
    default_branch: str

    @property
    def full_name(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True)
class Issue:
    """An issue, as a snapshot. `ref` is the issue as people write it: `acme/widgets#7`."""

    ref: str
    id: int
    number: int
    title: str
    body: str = field(repr=False)
    url: str
    state: str
    assignees: tuple[User, ...]
    labels: tuple[str, ...]
    author: User
    milestone: Optional[str]
    created_at: Optional[datetime]
    updated_at: Optional[datetime]
    closed_at: Optional[datetime]
    due_date: Optional[datetime]


@dataclass(frozen=True)
class Cause:
    """The delivery that a change follows from. `synced` says why Gitea's API was asked."""

    delivery_id: str
    action: str
    received_at: datetime
    synced: Optional[str]
    raised_by: Optional[str]


@dataclass(frozen=True)
class Delivery:
    """One HTTP request of Gitea."""

    id: str
    received_at: datetime
    body_sha256: str
    hook: Optional[str]


@dataclass(frozen=True)
class Act:
    """Who did what to an issue, as its timeline in Gitea says."""

    kind: str
    whom: Optional[User]
    by: User
    at: Optional[datetime]


@dataclass(frozen=True)
class Synced:
    """Why Gitea's API was asked, and what it said beside the issue itself."""

    cause: str
    known: str
    answered_at: Optional[datetime]
    raised_by: Optional[str]
    history: bool
    acts: tuple[Act, ...]


@dataclass(frozen=True)
class Message:
    """The message that a change or an event came in."""

    subject: str
    #: `Nats-Msg-Id`. The same change has the same id, however often it is published.
    id: str
    #: Sequence in the stream.
    sequence: int
    #: How often the broker has delivered it, and this program has tried it, from 1 on.
    attempt: int
    #: W3C trace context, as it came. `None` if there is none.
    traceparent: Optional[str]
    headers: Mapping[str, str] = field(repr=False)
    #: What the option `remember` opened for this attempt, such as a database connection.
    transaction: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Change:
    """What happened to an issue."""

    version: int
    kind: str
    added: tuple[str, ...]
    added_ids: tuple[int, ...]
    removed: tuple[str, ...]
    removed_ids: tuple[int, ...]
    by: tuple[Optional[User], ...]
    assignees: tuple[str, ...]
    assignee_ids: tuple[int, ...]
    in_doubt: bool
    first_seen: bool
    issue: Issue
    repository: Repository
    sender: User
    cause: Cause
    cut: bool
    message: Message
    #: The whole payload, with fields that this version does not know.
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Event:
    """What Gitea said: a snapshot of an issue."""

    version: int
    delivery: Delivery
    action: str
    issue: Issue
    repository: Repository
    sender: User
    commit_id: Optional[str]
    changes: Any
    cut: bool
    synced: Optional[Synced]
    message: Message
    #: The whole payload, with fields that this version does not know.
    raw: Mapping[str, Any] = field(repr=False, compare=False)


class _Fields:
    """The fields of a JSON object. Errors name the path of the field, and never its value."""

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise UnreadableError(f"{path or 'the payload'} is not an object")
        self._fields: dict[str, Any] = value
        self._path = path

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _typed(self, name: str, value: Any, kind: type[T]) -> T:
        # A bool is an int in Python, and not in JSON.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UnreadableError(f"{self._at(name)} is missing or of another type")
        return value

    def text(self, name: str) -> str:
        return self._typed(name, self._fields.get(name), str)

    def number(self, name: str) -> int:
        return self._typed(name, self._fields.get(name), int)

    def flag(self, name: str, default: Optional[bool] = None) -> bool:
        return self._typed(name, self._fields.get(name, default), bool)

    def time(self, name: str) -> datetime:
        try:
            return timestamps.parse(self.text(name))
        except ValueError:
            raise UnreadableError(f"{self._at(name)} is not a time") from None

    def any(self, name: str) -> Any:
        return self._fields.get(name)

    def object(self, name: str) -> _Fields:
        return _Fields(self._fields.get(name), self._at(name))

    def maybe(self, name: str, read: Callable[[str], T]) -> Optional[T]:
        return None if self._fields.get(name) is None else read(name)

    def _items(self, name: str, optional: bool) -> list[Any]:
        items = self._fields.get(name)
        if items is None and optional:
            return []
        found: list[Any] = self._typed(name, items, list)
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._typed(name, item, str) for item in self._items(name, False))

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(self._typed(name, item, int) for item in self._items(name, True))

    def objects(self, name: str, optional: bool = False) -> list[_Fields]:
        return [_Fields(item, self._at(name)) for item in self._items(name, optional)]

    def objects_or_null(self, name: str) -> list[Optional[_Fields]]:
        items = self._items(name, True)
        return [None if item is None else _Fields(item, self._at(name)) for item in items]


def _user(fields: _Fields) -> User:
    return User(fields.number("id"), fields.text("login"))


def _repository(fields: _Fields) -> Repository:
    return Repository(
        id=fields.number("id"),
        owner=fields.text("owner"),
        name=fields.text("name"),
        url=fields.text("url"),
        clone_url=fields.text("clone_url"),
        default_branch=fields.text("default_branch"),
    )


def _issue(fields: _Fields, repository: Repository) -> Issue:
    return Issue(
        ref=f"{repository.full_name}#{fields.number('number')}",
        id=fields.number("id"),
        number=fields.number("number"),
        title=fields.text("title"),
        body=fields.text("body"),
        url=fields.text("url"),
        state=fields.text("state"),
        assignees=tuple(_user(user) for user in fields.objects("assignees")),
        labels=fields.texts("labels"),
        author=_user(fields.object("author")),
        milestone=fields.maybe("milestone", fields.text),
        created_at=fields.maybe("created_at", fields.time),
        updated_at=fields.maybe("updated_at", fields.time),
        closed_at=fields.maybe("closed_at", fields.time),
        due_date=fields.maybe("due_date", fields.time),
    )


def _synced(fields: _Fields) -> Synced:
    return Synced(
        cause=fields.text("cause"),
        known=fields.text("known"),
        answered_at=fields.maybe("answered_at", fields.time),
        raised_by=fields.maybe("raised_by", fields.text),
        history=fields.flag("history", False),
        acts=tuple(
            Act(
                kind=act.text("kind"),
                whom=_user(act.object("whom")) if act.any("whom") is not None else None,
                by=_user(act.object("by")),
                at=act.maybe("at", act.time),
            )
            for act in fields.objects("acts", True)
        ),
    )


def _payload(payload: bytes, message: Message) -> tuple[dict[str, Any], _Fields]:
    try:
        raw = json.loads(payload)
    # Deeply nested JSON exhausts the stack.
    except (ValueError, RecursionError):
        raise UnreadableError("the payload is not JSON") from None
    fields = _Fields(raw, "")
    version = fields.number("version")
    if version > VERSION:
        raise VersionError(
            f"{message.id} has version {version}, and this client reads up to {VERSION}; upgrade it"
        )
    return raw, fields


def read_change(payload: bytes, message: Message) -> Change:
    """Reads a change. Raises `UnreadableError` and `VersionError`."""
    raw, fields = _payload(payload, message)
    repository = _repository(fields.object("repository"))
    cause = fields.object("cause")
    return Change(
        version=fields.number("version"),
        kind=fields.text("kind"),
        added=fields.texts("added"),
        added_ids=fields.numbers("added_ids"),
        removed=fields.texts("removed"),
        removed_ids=fields.numbers("removed_ids"),
        by=tuple(None if user is None else _user(user) for user in fields.objects_or_null("by")),
        assignees=fields.texts("assignees"),
        assignee_ids=fields.numbers("assignee_ids"),
        in_doubt=fields.flag("in_doubt"),
        first_seen=fields.flag("first_seen"),
        issue=_issue(fields.object("issue"), repository),
        repository=repository,
        sender=_user(fields.object("sender")),
        cause=Cause(
            delivery_id=cause.text("delivery_id"),
            action=cause.text("action"),
            received_at=cause.time("received_at"),
            synced=cause.maybe("synced", cause.text),
            raised_by=cause.maybe("raised_by", cause.text),
        ),
        cut=fields.flag("cut", False),
        message=message,
        raw=raw,
    )


def read_event(payload: bytes, message: Message) -> Event:
    """Reads an event. Raises `UnreadableError` and `VersionError`."""
    raw, fields = _payload(payload, message)
    repository = _repository(fields.object("repository"))
    delivery = fields.object("delivery")
    return Event(
        version=fields.number("version"),
        delivery=Delivery(
            id=delivery.text("id"),
            received_at=delivery.time("received_at"),
            body_sha256=delivery.text("body_sha256"),
            hook=delivery.maybe("hook", delivery.text),
        ),
        action=fields.text("action"),
        issue=_issue(fields.object("issue"), repository),
        repository=repository,
        sender=_user(fields.object("sender")),
        commit_id=fields.maybe("commit_id", fields.text),
        changes=fields.any("changes"),
        cut=fields.flag("cut", False),
        synced=_synced(fields.object("synced")) if fields.any("synced") is not None else None,
        message=message,
        raw=raw,
    )
