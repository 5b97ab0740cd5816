from __future__ import annotations

import unittest

import support
from coordinator_client import SettingsError, subjects
from coordinator_client.filters import Filter, Names
from coordinator_client.messages import Message, read_change, read_event

MESSAGE = Message("gitea.changes.assigned.acme.widgets.7", "id", 1, 1, None, {})


class Subjects(unittest.TestCase):
    def test_names_are_escaped_as_everywhere_else(self) -> None:
        for text, token in (
            ("acme", "acme"),
            ("docs.site", "docs%2Esite"),
            ("a b", "a%20b"),
            ("*>", "%2A%3E"),
            ("li-wei_1", "li-wei_1"),
            ("漢", "%E6%BC%A2"),
            ("100%", "100%25"),
            ("", "%"),
        ):
            self.assertEqual(subjects.escape(text), token)
            self.assertEqual(subjects.unescape(token), text)

    def test_one_filter_covers_another(self) -> None:
        for wide, narrow, covers in (
            (">", "gitea.changes.assigned.acme.widgets.7", True),
            ("gitea.changes.>", "gitea.changes.*.acme.>", True),
            ("gitea.changes.>", "gitea.changes", False),
            ("gitea.changes.*.acme.>", "gitea.changes.>", False),
            ("gitea.changes.assigned.>", "gitea.changes.closed.>", False),
            ("gitea.changes.*.acme.>", "gitea.changes.closed.acme.widgets.>", True),
            ("gitea.changes.*", "gitea.changes.>", False),
            ("gitea.changes.*", "gitea.changes.closed", True),
            ("gitea.changes.closed", "gitea.changes.*", False),
        ):
            self.assertEqual(subjects.covers(wide, narrow), covers, f"{wide} {narrow}")


def of(
    kind: Names = None, owner: Names = None, repository: Names = None, login: str | None = None
) -> Filter:
    return Filter.of("gitea.changes", kind, owner, repository, login, None)


class Filters(unittest.TestCase):
    def test_filters_are_subjects_that_do_not_overlap(self) -> None:
        for wanted, expected in (
            (of(), ["gitea.changes.>"]),
            (of(kind="closed"), ["gitea.changes.closed.>"]),
            (of(owner="acme"), ["gitea.changes.*.acme.>"]),
            (of(owner="ACME"), ["gitea.changes.*.ACME.>"]),
            (of(repository="docs.site"), ["gitea.changes.*.*.docs%2Esite.>"]),
            (of(repository="acme/docs.site"), ["gitea.changes.*.acme.docs%2Esite.>"]),
            (of(repository=["widgets", "acme/widgets"]), ["gitea.changes.*.*.widgets.>"]),
            (
                of(kind=["closed", "assigned"], owner="acme", repository="widgets"),
                ["gitea.changes.assigned.acme.widgets.>", "gitea.changes.closed.acme.widgets.>"],
            ),
        ):
            self.assertEqual(wanted.subjects(), expected)

    def test_what_matches_nothing_is_refused(self) -> None:
        with self.assertRaises(SettingsError):
            of(kind=[])
        with self.assertRaises(SettingsError):
            of(owner="acme", repository="acme/widgets")

    def test_a_subject_is_compared_again(self) -> None:
        self.assertTrue(of(owner="acme").wants_subject("gitea.changes.closed.acme.widgets.7"))
        self.assertFalse(of(owner="acme").wants_subject("gitea.changes.closed.other.widgets.7"))

    def test_who_is_concerned(self) -> None:
        bot, tom = {"id": 4, "login": "bot"}, {"id": 5, "login": "tom"}
        issue = support.change_json()["issue"]
        for kind, added, removed, assignees, bots in (
            ("assigned", [bot], [], [bot], True),
            ("assigned", [tom], [], [bot, tom], False),
            ("unassigned", [], [bot], [], True),
            ("unassigned", [], [tom], [bot], False),
            ("closed", [], [], [bot, tom], True),
            ("closed", [], [], [tom], False),
            ("deleted", [], [], [bot], True),
        ):
            value = support.change_json(
                kind=kind,
                added=[user["login"] for user in added],
                added_ids=[user["id"] for user in added],
                removed=[user["login"] for user in removed],
                removed_ids=[user["id"] for user in removed],
                issue={**issue, "assignees": assignees},
            )
            change = read_change(support.json.dumps(value).encode(), MESSAGE)
            for wanted in (
                of(login="Bot"),
                Filter.of("gitea.changes", None, None, None, None, 4),
                Filter.of("gitea.changes", None, None, None, "bot", 4),
            ):
                self.assertEqual(wanted.wants_people(change), bots, (kind, added, removed))
            self.assertFalse(
                Filter.of("gitea.changes", None, None, None, "bot", 5).wants_people(change)
            )
            self.assertTrue(of().wants_people(change))

    def test_an_event_concerns_whom_its_issue_is_assigned_to(self) -> None:
        event = read_event(support.json.dumps(support.event_json()).encode(), MESSAGE)
        self.assertTrue(of(login="bot").wants_people(event))
        self.assertFalse(of(login="maria").wants_people(event))
