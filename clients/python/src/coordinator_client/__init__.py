"""Subscribes to what happens to Gitea's issues, as Coordinator tells it."""

from .errors import ConsumerError, CoordinatorError, SettingsError, UnreadableError, VersionError
from .messages import (
    Act,
    Cause,
    Change,
    ChangeKind,
    Delivery,
    Event,
    Issue,
    Message,
    Repository,
    Synced,
    User,
)
from .outcomes import Again, Never
from .remember import InMemory, InSqlite, Remember, WithSqlite
from .runner import run, serve
from .settings import Settings
from .subscription import Subscription, changes, events

__all__ = [
    "Act",
    "Again",
    "Cause",
    "Change",
    "ChangeKind",
    "ConsumerError",
    "CoordinatorError",
    "Delivery",
    "Event",
    "InMemory",
    "InSqlite",
    "Issue",
    "Message",
    "Never",
    "Remember",
    "Repository",
    "Settings",
    "SettingsError",
    "Subscription",
    "Synced",
    "UnreadableError",
    "User",
    "VersionError",
    "WithSqlite",
    "changes",
    "events",
    "run",
    "serve",
]
