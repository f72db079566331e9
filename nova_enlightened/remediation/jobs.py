# SPDX-License-Identifier: Apache-2.0
"""Requests to the API and the agents, made by a few threads, so that a slow one blocks nothing."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

Outcome = tuple[Any, BaseException | None]
"""What the call returned, or what it raised."""


class Jobs:
    """Calls under way, each known by a key; used by one thread.

    :param wake: set whenever a call has come back.
    """

    def __init__(self, workers: int, wake: threading.Event) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="remediate")
        self._wake = wake
        self._pending: dict[tuple[str, str], concurrent.futures.Future[Any]] = {}

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._pending

    def submit(self, key: tuple[str, str], call: Callable[[], Any]) -> bool:
        """Have a call made. False where one of that key is under way: this one is not made."""
        if key in self._pending:
            return False
        future = self._pool.submit(call)
        self._pending[key] = future
        future.add_done_callback(lambda _: self._wake.set())
        return True

    def finished(self) -> list[tuple[tuple[str, str], Outcome]]:
        """Calls that have come back since this was last asked."""
        done = [(key, future) for key, future in self._pending.items() if future.done()]
        found: list[tuple[tuple[str, str], Outcome]] = []
        for key, future in done:
            del self._pending[key]
            error = future.exception()
            found.append((key, (None if error is not None else future.result(), error)))
        return found

    def forget(self) -> None:
        """Begin none of those that have not begun, and ask for no other's outcome."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def stop(self) -> None:
        """As :meth:`forget`, for good; calls under way end by their own timeouts."""
        self.forget()
        self._pool.shutdown(wait=False, cancel_futures=True)
