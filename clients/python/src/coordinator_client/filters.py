"""Which messages a subscriber wants: at the broker by subject, here by person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Union

from . import subjects
from .errors import SettingsError
from .messages import Change, ChangeKind, Event

Names = Union[None, str, Iterable[str]]


def _names(names: Names, what: str) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names or ()))
    if names is not None and not found:
        raise SettingsError(f"{what} is empty, which matches nothing; leave it out to match any")
    return found


@dataclass(frozen=True)
class Filter:
    """All conditions hold at once; within one, any of its values."""

    prefix: str
    kinds: tuple[str, ...]
    owners: tuple[str, ...]
    repositories: tuple[str, ...]
    login: Optional[str]
    user_id: Optional[int]

    @classmethod
    def of(
        cls,
        prefix: str,
        kinds: Names,
        owner: Names,
        repository: Names,
        login: Optional[str],
        user_id: Optional[int],
    ) -> Filter:
        """A repository may be named with its owner, `acme/widgets`."""
        found = cls(
            prefix,
            _names(kinds, "the kind"),
            _names(owner, "the owner"),
            _names(repository, "the repository"),
            login,
            user_id,
        )
        if found.owners and any("/" in name for name in found.repositories):
            raise SettingsError("name the owner with the repository or by itself, not both")
        return found

    def subjects(self) -> list[str]:
        """Filters for the consumer. They do not overlap, as the broker demands."""
        places = {
            place
            for owner in (self.owners or (None,))
            for name in (self.repositories or (None,))
            for place in [self._place(owner, name)]
        }
        # A repository of any owner covers the same one of one owner.
        places = {p for p in places if p[0] is None or (None, p[1]) not in places}
        return sorted(
            subjects.pattern(self.prefix, kind, owner, name)
            for kind in (self.kinds or (None,))
            for owner, name in places
        )

    @staticmethod
    def _place(owner: Optional[str], name: Optional[str]) -> tuple[Optional[str], Optional[str]]:
        if name is not None and "/" in name:
            owner, _, name = name.partition("/")
        return owner, name

    @cached_property
    def _subjects(self) -> list[str]:
        return self.subjects()

    def wants_subject(self, subject: str) -> bool:
        """Whether the subject is wanted. A consumer of somebody else may deliver more."""
        return any(subjects.covers(wanted, subject) for wanted in self._subjects)

    def wants_people(self, message: Union[Change, Event]) -> bool:
        """Whether the message concerns the person, if one is named.

        A change of the kinds `assigned` and `unassigned` concerns who was assigned or unassigned;
        any other message whom the issue is assigned to.
        """
        if self.login is None and self.user_id is None:
            return True
        people = {(user.id, user.login) for user in message.issue.assignees}
        if isinstance(message, Change):
            if message.kind in (ChangeKind.ASSIGNED, ChangeKind.UNASSIGNED):
                people = set()
            people.update(zip(message.added_ids, message.added))
            people.update(zip(message.removed_ids, message.removed))
        return any(
            (self.login is None or login.lower() == self.login.lower())
            and (self.user_id is None or user_id == self.user_id)
            for user_id, login in people
        )
