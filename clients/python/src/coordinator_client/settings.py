"""Where the broker is, and who we are to it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union
from urllib.parse import unquote, urlsplit

from .errors import SettingsError

File = Union[None, str, Path]


@dataclass(frozen=True)
class Settings:
    """How to reach the broker. Secrets are not shown in its text form.

    Files are read at each connection, so that what is in them may change.
    """

    #: `nats://` or `tls://`; several servers of a cluster with commas between.
    url: str = field(default="nats://127.0.0.1:4222", repr=False)
    user: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)
    #: A file with the password. What stands around it as white space is ignored.
    password_file: File = None
    token: Optional[str] = field(default=None, repr=False)
    #: Needs the extra `coordinator-client[creds]`.
    creds_file: File = None
    #: Authorities to trust instead of the system's.
    ca_file: File = None
    #: Certificate and key that we show.
    cert_file: File = None
    key_file: File = None
    inbox_prefix: str = "_INBOX"
    #: Name of the connection, as the broker shows it.
    name: str = "coordinator-client"
    #: Seconds that one attempt to connect may take.
    connect_timeout: float = 3.0

    def __post_init__(self) -> None:
        for server in self.url.split(","):
            try:
                parts = urlsplit(_with_scheme(server))
                known = parts.scheme in ("nats", "tls") and bool(parts.hostname)
                _ = parts.port
            except ValueError:
                known = False
            if not known:
                raise SettingsError(
                    "the URL of a server is not nats://host:port or tls://host:port"
                )
        if self.password is not None and self.password_file is not None:
            raise SettingsError("password and password_file exclude each other")
        if (self.password is not None or self.password_file) and self.user is None:
            raise SettingsError("a password needs a user")
        if (self.cert_file is None) != (self.key_file is None):
            raise SettingsError("cert_file and key_file belong together")

    @classmethod
    def from_environment(cls) -> Settings:
        """Settings under the names that Coordinator itself has: `NATS_URL`, `NATS_USER`,
        `NATS_PASSWORD`, `NATS_PASSWORD_FILE`, `NATS_CREDS_FILE`, `NATS_CA_FILE`,
        `NATS_CERT_FILE`, `NATS_KEY_FILE`, `NATS_INBOX_PREFIX`. Empty ones count as not set."""
        names = {
            "url": "NATS_URL",
            "user": "NATS_USER",
            "password": "NATS_PASSWORD",
            "password_file": "NATS_PASSWORD_FILE",
            "creds_file": "NATS_CREDS_FILE",
            "ca_file": "NATS_CA_FILE",
            "cert_file": "NATS_CERT_FILE",
            "key_file": "NATS_KEY_FILE",
            "inbox_prefix": "NATS_INBOX_PREFIX",
        }
        found = {field: os.environ.get(name) for field, name in names.items()}
        return cls(**{field: value for field, value in found.items() if value})  # type: ignore[arg-type]

    def servers(self) -> list[str]:
        """URLs of the servers, without a login that stands in them."""
        found = []
        for server in self.url.split(","):
            parts = urlsplit(_with_scheme(server))
            host = parts.netloc.rpartition("@")[2]
            found.append(f"{parts.scheme}://{host}")
        return found

    def login(self) -> tuple[Optional[str], Optional[str], Optional[str]]:
        """User, password and token. Raises `SettingsError` if the file cannot be read."""
        if self.password_file is not None:
            return self.user, self._read(self.password_file), self.token
        if self.user is None and self.token is None:
            parts = urlsplit(_with_scheme(self.url.split(",")[0]))
            if parts.username and parts.password is None:
                return None, None, unquote(parts.username)
            if parts.username:
                return unquote(parts.username), unquote(parts.password or ""), None
        return self.user, self.password, self.token

    @staticmethod
    def _read(file: Union[str, Path]) -> str:
        try:
            return Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SettingsError(f"read the password from {file}: {why}") from None

    @property
    def wants_tls(self) -> bool:
        """Whether nothing may be said without TLS."""
        tls = any(server.startswith("tls://") for server in self.servers())
        return tls or self.ca_file is not None or self.cert_file is not None

    def tls(self) -> Optional[ssl.SSLContext]:
        """Context for TLS, if files are named. Raises `SettingsError`."""
        if not self.wants_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file and str(self.ca_file))
            if self.cert_file is not None and self.key_file is not None:
                context.load_cert_chain(str(self.cert_file), str(self.key_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"read the files for TLS: {error}") from None
        return context


def _with_scheme(server: str) -> str:
    server = server.strip()
    return server if "://" in server else f"nats://{server}"
