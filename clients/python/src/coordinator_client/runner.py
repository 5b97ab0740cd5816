"""Runs subscriptions: `run` in a program of its own, `serve` within an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Optional

from .settings import Settings
from .subscriber import Subscriber
from .subscription import Subscription


async def serve(
    *subscriptions: Subscription,
    settings: Optional[Settings] = None,
    stop: Optional[asyncio.Event] = None,
) -> None:
    """Runs until `stop` is set or the task is cancelled, then finishes what is in hand. Where one
    subscription fails for good, all end, and its error is raised."""
    subscribers = [Subscriber(each, settings or Settings()) for each in subscriptions]
    tasks = [asyncio.ensure_future(each.run()) for each in subscribers]
    stopped = asyncio.ensure_future((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        for subscriber in subscribers:
            subscriber.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def run(*subscriptions: Subscription, settings: Optional[Settings] = None) -> None:
    """Runs until SIGINT or SIGTERM, then finishes what is in hand. A second one ends it at once."""
    asyncio.run(_until_signal(subscriptions, settings))


async def _until_signal(
    subscriptions: tuple[Subscription, ...], settings: Optional[Settings]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        # Outside of the main thread, and on Windows, there are none.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, on_signal, number)
    await serve(*subscriptions, settings=settings, stop=stop)
