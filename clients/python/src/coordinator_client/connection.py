"""One connection to the broker, which is never resumed: after a break there is a new one.

nats-py would reconnect by itself, but what it keeps over a break does harm here: requests for
messages that nobody waits for any more are sent again, a failed login ends it for good, and an
error in its reading task leaves it connected and deaf.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import nats.errors
from nats.aio.client import Client

from .errors import SettingsError
from .settings import Settings

log = logging.getLogger("coordinator_client")

#: Bytes that may wait to be sent. nats-py blocks its caller above that.
_MOST_UNSENT_BYTES = 64 * 1024 * 1024


class _Client(Client):
    """nats-py's client, which says nothing without TLS where TLS is wanted.

    By itself it takes `tls://` as a wish: a server that does not ask for TLS is sent the password
    in clear text.
    """

    require_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.require_tls and initial_connection and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise nats.errors.Error("the server offers no TLS")
            info["tls_required"] = True
        # Servers that a cluster announces are not wanted: each connection begins at the named ones.
        info.pop("connect_urls", None)
        await super()._process_info(info, initial_connection)


async def connect(settings: Settings) -> Client:
    """Connects once. Raises `SettingsError`, or whatever kept it from connecting."""
    client = _Client()
    client.require_tls = settings.wants_tls
    user, password, token = settings.login()
    options: dict[str, Any] = {}
    if settings.creds_file is not None:
        try:
            import nkeys  # type: ignore[import-not-found]  # noqa: F401 - nats-py needs it
        except ImportError:
            raise SettingsError("creds_file needs pip install coordinator-client[creds]") from None
        options["user_credentials"] = str(settings.creds_file)
    tls = settings.tls()
    if tls is not None:
        options["tls"] = tls
    errors: list[Exception] = []

    async def note(error: Exception) -> None:
        errors.append(error)
        del errors[:-1]
        log.debug("nats: %s", describe(error))

    try:
        # nats-py goes round for ever where a server refuses connections; one round is enough.
        await asyncio.wait_for(
            client.connect(
                settings.servers(),
                error_cb=note,
                name=settings.name,
                user=user,
                password=password,
                token=token,
                inbox_prefix=settings.inbox_prefix,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=settings.connect_timeout,  # type: ignore[arg-type]
                pending_size=_MOST_UNSENT_BYTES,
                flush_timeout=1.0,
                **options,
            ),
            settings.connect_timeout * len(settings.servers()) + 1,
        )
    except BaseException as error:
        await close(client)
        if isinstance(error, nats.errors.NoServersError) and errors:
            raise errors[-1] from None
        raise
    return client


async def close(client: Client) -> None:
    """Closes it, within a second, whatever state it is in."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), 1)
    # After an error while it was closing, nats-py keeps the socket and its tasks.
    with contextlib.suppress(Exception):
        for subscription in list(client._subs.values()):
            if subscription._wait_for_msgs_task is not None:
                subscription._wait_for_msgs_task.cancel()
        if client._transport is not None:
            client._transport.close()  # type: ignore[no-untyped-call]


def describe(error: BaseException) -> str:
    """An error for the log: its kind and its text on one line, cut."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
