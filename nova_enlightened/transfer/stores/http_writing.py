# SPDX-License-Identifier: Apache-2.0
"""Publishing to an HTTP server that takes PUT and DELETE (WebDAV, RFC 4918).

nginx needs ``dav_methods PUT DELETE MKCOL`` and, to list, ``autoindex on; autoindex_format json``;
other servers are listed by PROPFIND. A name and password are taken from the user's ``.netrc``.
"""

import base64
import email.utils
import json
import math
import netrc
import posixpath
import urllib.parse
from collections.abc import Iterator
from typing import Any, Final
from xml.etree import ElementTree

import urllib3
from urllib3 import exceptions as http_errors

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import checked_name
from nova_enlightened.transfer.stores.http import HttpStore, Patience, check_status
from nova_enlightened.transfer.stores.writing import PIECE, Entry, Progress

_NO_DIRECTORY: Final = frozenset({404, 409, 500})
"""What servers answer where a directory above is missing: 409 by the RFC, 500 by nginx."""
_MADE: Final = frozenset({200, 201, 204})
_MAX_LISTING: Final = 64 << 20
_MAX_DEPTH: Final = 4
_DAV: Final = "{DAV:}"
_PROPFIND: Final = (
    b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/>'
    b"<getlastmodified/></prop></propfind>"
)


class WritableHttpStore(HttpStore):
    """Made without I/O, but for the ``.netrc``. A PUT is atomic as far as the server's is: its
    size is looked at afterwards.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        super().__init__(url, patience)
        self._authorization: dict[str, str] = _credentials(self.url)

    def exists(self, name: str) -> int | None:
        try:
            return self.size(name)
        except exception.StoreObjectMissing:
            return None

    def put(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        address = self._address(name)
        self._patiently(f"PUT {address}", lambda: self._put_once(name, content, progress))
        found = self.size(name)
        if found != len(content):
            raise exception.StoreCorrupt(f"{address} has {found} of {len(content)} bytes stored")

    def entries(self, prefix: str) -> Iterator[Entry]:
        yield from self._list(prefix, self._look(f"{checked_name(prefix.rstrip('/'))}/"), 0)

    def delete(self, name: str) -> None:
        address = self._address(name)

        def attempt() -> None:
            status = self._send("DELETE", address).status
            if status not in _MADE and status not in (404, 410):
                _refuse(status, "DELETE")

        self._patiently(f"DELETE {address}", attempt)

    def _put_once(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        sent = 0

        def pieces() -> Iterator[bytes | memoryview]:
            nonlocal sent
            for at in range(0, len(content), PIECE):
                piece = content[at : at + PIECE]
                yield piece
                sent += len(piece)
                progress(len(piece))

        try:
            status = self._put(name, pieces(), len(content))
            if status in _NO_DIRECTORY:
                progress(-sent)
                sent = 0
                self._make_directories(name)
                status = self._put(name, pieces(), len(content))
            if status not in _MADE:
                _refuse(status, "PUT")
        except BaseException:
            progress(-sent)
            raise

    def _put(self, name: str, body: Iterator[bytes | memoryview], length: int) -> int:
        headers = {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        return self._send("PUT", self._address(name), body=body, headers=headers).status

    def _make_directories(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            address = f"{self._address('/'.join(parts[: depth + 1]))}/"
            status = self._send("MKCOL", address).status
            if status not in _MADE and status != 405:  # 405: it is there
                _refuse(status, "MKCOL")

    def _send(self, method: str, address: str, **more: Any) -> urllib3.BaseHTTPResponse:
        headers = {**self._pool.headers, **self._authorization, **more.pop("headers", {})}
        try:
            return self._pool.request(
                method, address, headers=headers, redirect=False, retries=False, **more
            )
        except (http_errors.HTTPError, OSError) as error:
            raise exception.StoreError(str(error)) from error

    # Listings.

    def _look(self, prefix: str) -> list[tuple[str, int | None, float]]:
        address = f"{self.url}/{prefix}"
        return self._patiently(address, lambda: self._listing(address))

    def _listing(self, address: str) -> list[tuple[str, int | None, float]]:
        """(name, bytes or None for a directory, modified) of what is in a directory."""
        answer = self._send("GET", address, headers={"Accept": "application/json"})
        if answer.status in (404, 410):
            return []
        if answer.status == 200 and "json" in answer.headers.get("Content-Type", ""):
            return _autoindex(answer.data)
        answer = self._send("PROPFIND", address, headers={"Depth": "1"}, body=_PROPFIND)
        if answer.status == 207:
            return _multistatus(answer.data, urllib.parse.urlsplit(address).path)
        if answer.status in (404, 410):
            return []
        raise exception.StoreRefused(
            "the server lists no directories: let it answer PROPFIND, or, with nginx, set "
            "autoindex on; autoindex_format json;"
        )

    def _list(
        self, prefix: str, found: list[tuple[str, int | None, float]], depth: int
    ) -> Iterator[Entry]:
        for name, size, modified in sorted(found):
            if size is not None:
                yield Entry(checked_name(f"{prefix}{name}"), size, modified)
            elif depth < _MAX_DEPTH:
                below = f"{prefix}{checked_name(name)}/"
                yield from self._list(below, self._look(below), depth + 1)


def _refuse(status: int, method: str) -> None:
    if status in (401, 403):
        raise exception.StoreRefused(
            f"{method} needs a name and a password (status {status}): put them into ~/.netrc"
        )
    if status == 413:
        raise exception.StoreRefused(
            "the object is too large for the server (status 413): let it take 64 MiB, with nginx "
            "by client_max_body_size 65m;"
        )
    if status in (405, 501):
        raise exception.StoreRefused(f"the server does not take {method} (status {status})")
    check_status(status)


def _credentials(url: str) -> dict[str, str]:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return {}
    if not found:
        return {}
    token = base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def _autoindex(data: bytes) -> list[tuple[str, int | None, float]]:
    """nginx: ``[{"name", "type": "directory" or "file", "mtime", "size"}, ...]``."""
    try:
        if len(data) > _MAX_LISTING:
            raise ValueError(f"{len(data)} bytes")
        return [
            (
                str(one["name"]),
                int(one["size"]) if one["type"] == "file" else None,
                _when(str(one.get("mtime", ""))),
            )
            for one in json.loads(data)
            if one["type"] in ("file", "directory")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise exception.StoreRefused(f"not a listing of a directory: {error}") from error


def _multistatus(data: bytes, path: str) -> list[tuple[str, int | None, float]]:
    """WebDAV: a response element for the directory and each thing in it."""
    try:
        if len(data) > _MAX_LISTING or b"<!DOCTYPE" in data:
            raise ValueError(f"{len(data)} bytes")
        found = []
        for one in ElementTree.fromstring(data).iter(f"{_DAV}response"):
            where = urllib.parse.unquote(urllib.parse.urlsplit(one.findtext(f"{_DAV}href")).path)
            if where.rstrip("/") == urllib.parse.unquote(path).rstrip("/"):
                continue
            directory = one.find(f".//{_DAV}collection") is not None
            size = None if directory else int(one.findtext(f".//{_DAV}getcontentlength") or 0)
            when = _when(one.findtext(f".//{_DAV}getlastmodified") or "")
            found.append((posixpath.basename(where.rstrip("/")), size, when))
        return found
    except (ValueError, ElementTree.ParseError) as error:
        raise exception.StoreRefused(f"not a listing of a directory: {error}") from error


def _when(text: str) -> float:
    """A date of HTTP; without one nobody can say that a file is old."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return math.inf
