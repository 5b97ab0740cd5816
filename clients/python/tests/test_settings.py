from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from coordinator_client import Settings, SettingsError, changes
from coordinator_client.settings import Settings as Same


async def handle(change: object) -> None:
    pass


class SettingsTest(unittest.TestCase):
    def test_secrets_are_not_shown(self) -> None:
        settings = Settings(url="nats://u:hush@host:1", user="u", password="hush")
        self.assertNotIn("hush", repr(settings))
        self.assertNotIn("hush", " ".join(settings.servers()))
        for wrong in ({"url": "http://u:hush@host"}, {"url": "nats://u:hush@host:port"}):
            with self.assertRaises(SettingsError) as raised:
                Settings(**wrong)
            self.assertNotIn("hush", str(raised.exception))

    def test_the_login_is_found(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "password"
            file.write_text("from file\n")
            for settings, login in (
                (Settings(), (None, None, None)),
                (Settings(user="u", password="p"), ("u", "p", None)),
                (Settings(user="u", password_file=file), ("u", "from file", None)),
                (Settings(url="nats://u:p%40@host"), ("u", "p@", None)),
                (Settings(url="nats://token@host"), (None, None, "token")),
                (Settings(token="t"), (None, None, "t")),
            ):
                self.assertEqual(settings.login(), login)
            with self.assertRaises(SettingsError):
                Settings(user="u", password_file=Path(directory) / "none").login()

    def test_what_does_not_go_together_is_refused(self) -> None:
        for wrong in (
            {"password": "p"},
            {"user": "u", "password": "p", "password_file": "f"},
            {"cert_file": "f"},
        ):
            with self.assertRaises(SettingsError):
                Settings(**wrong)  # type: ignore[arg-type]

    def test_the_environment_has_the_names_of_the_service(self) -> None:
        given = {"NATS_URL": "tls://a,b:1", "NATS_USER": "u", "NATS_PASSWORD": "", "HOME": "/"}
        given["NATS_PASSWORD_FILE"] = "f"
        with mock.patch.dict(os.environ, given, clear=True):
            settings = Settings.from_environment()
        self.assertEqual(settings, Same(url="tls://a,b:1", user="u", password_file="f"))
        self.assertEqual(settings.servers(), ["tls://a", "nats://b:1"])
        self.assertTrue(settings.wants_tls)

    def test_arguments_are_checked(self) -> None:
        for wrong in (
            {"durable": "a.b"},
            {"start": "yesterday"},
            {"concurrency": 0},
            {"ack_wait": 0.1},
            {"first_delay": 5, "longest_delay": 1},
        ):
            with self.assertRaises(SettingsError):
                changes(**{"durable": "x", "handler": handle, **wrong})
