# SPDX-License-Identifier: Apache-2.0
"""A store behind any HTTP server with byte ranges: ``http://...``, ``https://...``.

Connections are kept alive and shared by threads. An answer counts only if it is exactly the range
that was asked for; what may pass (5xx, timeouts, an answer cut short, a reset) is tried again
with growing pauses, within a limit.
"""

import dataclasses
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import urllib3
from urllib3 import exceptions as http_errors

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import checked_name

_T = TypeVar("_T")

CONNECTIONS: Final = 64
"""Connections kept alive at most; more requests at once open more, which are not kept."""
_PIECE: Final = 256 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MISSING: Final = frozenset({404, 410})
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long one request may take, and how often it is made.

    :param attempts: tries in all, at least 1.
    :param pause_s: before the second; each further pause is twice as long, up to `longest_s`.
    :param silence_s: without a byte before an attempt has failed.
    :param slowest: bytes per second; an attempt slower than that, after `silence_s`, has failed.
    """

    attempts: int = 5
    pause_s: float = 0.2
    longest_s: float = 3.0
    silence_s: float = 10.0
    slowest: float = 16 * 1024

    def pauses(self) -> list[float]:
        """The pause before each try after the first."""
        return [min(self.pause_s * 2**n, self.longest_s) for n in range(self.attempts - 1)]

    def deadline_s(self, length: int) -> float:
        """How long an attempt for so many bytes may take."""
        return self.silence_s + length / self.slowest


class HttpStore:
    """Objects below a URL.

    :param url: with or without a closing slash; a query is kept out of it.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
            raise exception.ConfigError(f"{url!r} is no URL of an HTTP store")
        self.url = url.rstrip("/")
        self._patience = patience or Patience()
        self._closed = threading.Event()
        silence = self._patience.silence_s
        self._pool = urllib3.PoolManager(
            num_pools=4,
            maxsize=CONNECTIONS,
            timeout=urllib3.Timeout(connect=min(5.0, silence), read=silence),
            # Redirects only: what else fails is tried again here, where its meaning is known.
            retries=urllib3.Retry(3, connect=0, read=0, redirect=3, status=0, other=0),
            headers={"Accept-Encoding": "identity", "User-Agent": "nova-enlightened"},
        )

    def read(self, name: str, offset: int, length: int) -> bytes:
        what = f"bytes {offset}-{offset + length - 1} of {self._address(name)}"
        return self._patiently(what, lambda: self._read_once(name, offset, length))

    def size(self, name: str) -> int:
        return self._patiently(self._address(name), lambda: self._size_once(name))

    def close(self) -> None:
        self._closed.set()
        self._pool.clear()

    def _address(self, name: str) -> str:
        return f"{self.url}/{checked_name(name)}"

    def _patiently(self, what: str, attempt: Callable[[], _T]) -> _T:
        pauses = self._patience.pauses()
        while True:
            try:
                return attempt()
            except exception.StoreError as error:
                if not error.retryable or not pauses or self._closed.is_set():
                    raise type(error)(f"{what}: {error}") from error
                self._closed.wait(pauses.pop(0))

    def _read_once(self, name: str, offset: int, length: int) -> bytes:
        headers = {**self._pool.headers, "Range": f"bytes={offset}-{offset + length - 1}"}
        deadline = time.monotonic() + self._patience.deadline_s(length)
        try:
            response = self._pool.request(
                "GET", self._address(name), headers=headers, preload_content=False
            )
        except http_errors.HTTPError as error:
            raise exception.StoreError(str(error)) from error
        whole = False
        try:
            check_answer(response.status, response.headers, offset, length)
            data = _body(response, length, deadline)
            whole = True
        except (http_errors.HTTPError, OSError) as error:
            raise exception.StoreError(f"the answer broke off: {error}") from error
        finally:
            if whole:
                response.release_conn()
            else:
                # What is left of the answer would be taken for the next one.
                response.close()
        return data

    def _size_once(self, name: str) -> int:
        try:
            response = self._pool.request("HEAD", self._address(name))
        except http_errors.HTTPError as error:
            raise exception.StoreError(str(error)) from error
        check_status(response.status)
        length = response.headers.get("Content-Length", "")
        if response.status != 200 or not length.isdecimal():
            raise exception.StoreRefused(f"status {response.status}, no length")
        return int(length)


def check_status(status: int) -> None:
    """:raises StoreError: a status other than success, each of the class it is."""
    if status in _MISSING:
        raise exception.StoreObjectMissing(f"status {status}")
    if status in _PASSING:
        raise exception.StoreError(f"status {status}")
    if status == 416:
        raise exception.StoreCorrupt("the object is shorter than that (status 416)")
    if status not in (200, 206):
        raise exception.StoreRefused(f"status {status}")


def check_answer(status: int, headers: Mapping[str, str], offset: int, length: int) -> None:
    """See that an answer is the range that was asked for, before any of it is read.

    :param headers: whose names are found in whatever case.
    """
    check_status(status)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise exception.StoreRefused("the server changes objects on the way (Content-Encoding)")
    announced = headers.get("Content-Length")
    if status == 200:
        if offset or announced != str(length):
            raise exception.RangesIgnored("the server ignores byte ranges")
        return
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None:
        raise exception.StoreRefused("an answer in parts without a byte range of its own")
    first, last = int(found[1]), int(found[2])
    if first != offset or last > offset + length - 1:
        raise exception.RangesIgnored(f"the server answers with bytes {first}-{last}")
    if last < offset + length - 1:
        raise exception.StoreCorrupt(f"the object ends at byte {last}")
    if announced is not None and announced != str(length):
        raise exception.StoreError(f"{announced} bytes announced")


def _body(response: urllib3.BaseHTTPResponse, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) <= length:
        piece = response.read1(_PIECE)
        if not piece:
            break
        data += piece
        if len(data) < length and time.monotonic() > deadline:
            raise exception.StoreError(f"too slow: {len(data)} of {length} bytes came in time")
    if len(data) != length:
        raise exception.StoreError(f"{len(data)} of {length} bytes came")
    return bytes(data)
