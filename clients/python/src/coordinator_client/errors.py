"""What can go wrong for good. What may heal by itself is logged and tried again instead."""

from __future__ import annotations


class CoordinatorError(Exception):
    """Base of all errors of this package."""


class SettingsError(CoordinatorError):
    """An argument is missing or wrong."""


class ConsumerError(CoordinatorError):
    """The durable consumer cannot be used as it is, or may not be created."""


class VersionError(CoordinatorError):
    """A message is of a later version than this package reads. It was not settled."""


class UnreadableError(CoordinatorError):
    """A message is not of the expected shape. The text names the field and shows no value."""
