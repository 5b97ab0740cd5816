from __future__ import annotations

import json
import re
import unittest
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import support
from coordinator_client import ChangeKind, UnreadableError, VersionError, timestamps
from coordinator_client.messages import Message, read_change, read_event

MESSAGE = Message("gitea.changes.assigned.acme.widgets.7", "id", 1, 1, None, {})
ROOT = Path(__file__).resolve().parents[3]


def changed(value: Any, path: str, to: Any) -> bytes:
    *steps, last = path.split(".")
    place = value
    for step in steps:
        place = place[step]
    if to is ...:
        del place[last]
    else:
        place[last] = to
    return json.dumps(value).encode()


class Messages(unittest.TestCase):
    def test_the_examples_of_the_readme_are_read(self) -> None:
        text = (ROOT / "README.md").read_text("utf-8")
        event_text, change_text = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[:2]
        event = read_event(event_text.encode(), MESSAGE)
        self.assertEqual((event.action, event.issue.ref), ("assigned", "acme/widgets#1"))
        self.assertEqual(event.delivery.hook, "repository")
        change = read_change(change_text.encode(), MESSAGE)
        self.assertEqual(
            (change.kind, change.added, change.added_ids), ("assigned", ("bot",), (4,))
        )
        self.assertEqual(change.issue.assignees[0].login, "bot")
        self.assertEqual(change.cause.received_at.microsecond, 125_000)

    def test_the_frozen_examples_are_read(self) -> None:
        files = sorted((ROOT / "docs" / "examples" / "v1").rglob("*.json"))
        if not files:
            self.skipTest("there are no frozen examples")
        for file in files:
            payload = file.read_bytes()
            with self.subTest(file=file.name):
                value = json.loads(payload)
                if "kind" in value and "cause" in value:
                    read_change(payload, MESSAGE)
                elif "delivery" in value and "action" in value:
                    read_event(payload, MESSAGE)

    def test_fields_and_kinds_that_are_not_known_are_kept(self) -> None:
        value = support.change_json(kind="transferred", new_field={"a": 1})
        change = read_change(json.dumps(value).encode(), MESSAGE)
        self.assertEqual(change.kind, "transferred")
        self.assertNotIn(change.kind, ChangeKind.ALL)
        self.assertEqual(change.raw["new_field"], {"a": 1})

    def test_fields_that_came_later_may_be_missing(self) -> None:
        value = support.change_json()
        for name in ("added_ids", "removed_ids", "assignee_ids", "cut"):
            del value[name]
        change = read_change(json.dumps(value).encode(), MESSAGE)
        self.assertEqual((change.added_ids, change.by, change.cut), ((), (), False))

    def test_what_giteas_api_said(self) -> None:
        maria = {"id": 1, "login": "maria"}
        value = support.change_json(by=[maria, None])
        value["cause"].update(synced="doubt", raised_by="an-id")
        change = read_change(json.dumps(value).encode(), MESSAGE)
        self.assertEqual(change.cause.synced, "doubt")
        self.assertEqual([user and user.login for user in change.by], ["maria", None])
        act = {"kind": "closed", "by": maria, "at": "2026-11-23T23:45:02Z"}
        synced = {"cause": "missed", "known": "", "acts": [act]}
        event = read_event(json.dumps(support.event_json(synced=synced)).encode(), MESSAGE)
        assert event.synced is not None
        self.assertEqual(event.synced.acts[0].by.login, "maria")

    def test_an_error_names_the_field_and_shows_nothing(self) -> None:
        for path, to, named in (
            ("kind", 7, "kind"),
            ("issue.title", ..., "issue.title"),
            ("issue.number", True, "issue.number"),
            ("issue.updated_at", "hush", "issue.updated_at"),
            ("issue.author", "hush", "issue.author"),
            ("added", ["hush", 7], "added"),
            ("repository", ["hush"], "repository"),
        ):
            with self.assertRaises(UnreadableError) as raised:
                read_change(changed(support.change_json(), path, to), MESSAGE)
            self.assertIn(named, str(raised.exception))
            self.assertNotIn("hush", str(raised.exception))
        for payload in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000):
            with self.assertRaises(UnreadableError):
                read_change(payload, MESSAGE)

    def test_a_later_version_is_an_error_of_its_own(self) -> None:
        # Its shape is another one.
        payload = json.dumps({"version": 2, "kind": {"name": "assigned"}}).encode()
        for read in (read_change, read_event):
            with self.assertRaises(VersionError) as raised:
                read(payload, MESSAGE)
            self.assertIn("version 2", str(raised.exception))

    def test_a_body_is_not_shown(self) -> None:
        change = read_change(json.dumps(support.change_json()).encode(), MESSAGE)
        self.assertNotIn("Sign in", repr(change))


class Timestamps(unittest.TestCase):
    def test_rfc_3339_is_read(self) -> None:
        utc = timezone.utc
        for text, expected in (
            ("2026-11-23T23:45:00Z", datetime(2026, 11, 23, 23, 45, tzinfo=utc)),
            ("2026-11-23t23:45:00.1z", datetime(2026, 11, 23, 23, 45, 0, 100_000, utc)),
            (
                "2026-11-24T01:45:00.1234567+02:00",
                datetime(2026, 11, 23, 23, 45, 0, 123_456, utc),
            ),
            ("2026-11-23T22:15:00-01:30", datetime(2026, 11, 23, 23, 45, tzinfo=utc)),
            ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=utc)),
            ("0000-01-01T00:00:00Z", datetime.min.replace(tzinfo=utc)),
            ("9999-12-31T23:59:59-02:00", datetime.max.replace(tzinfo=utc)),
        ):
            self.assertEqual(timestamps.parse(text), expected, text)
        for text in ("", "2026-11-23", "2026-13-01T00:00:00Z", "2026-11-23T23:45:00", "x"):
            with self.assertRaises(ValueError):
                timestamps.parse(text)
