# SPDX-License-Identifier: Apache-2.0
"""A store in a container of Swift: ``swift://container/prefix``.

Which Swift, and as whom, is what openstacksdk finds: ``OS_CLOUD`` and ``clouds.yaml``, or ``OS_``
variables. Hosts that only read need none of that where the container may be read by all
(``.r:*,.rlistings``): give them its ``https`` URL as the store.
"""

import datetime
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final

import openstack
from keystoneauth1 import exceptions as keystone_errors
from openstack import exceptions as sdk_errors

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import checked_name
from nova_enlightened.transfer.stores.http import check_answer, check_status
from nova_enlightened.transfer.stores.writing import PIECE, Entry, Progress

_LISTED: Final = 10_000
"""Objects in one page of a listing: Swift's default limit."""
_ATTEMPTS: Final = 4


class SwiftStore:
    """Made without I/O.

    :param url: ``swift://container`` or ``swift://container/prefix``.
    :param connect: makes an ``openstack.connection.Connection``.
    """

    def __init__(self, url: str, connect: Callable[[], Any] = openstack.connect) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "swift" or not parts.netloc or parts.query:
            raise exception.ConfigError(f"{url!r} is not swift://CONTAINER/PREFIX")
        self._container = urllib.parse.unquote(parts.netloc)
        self._prefix = parts.path.strip("/")
        self._connect = connect
        self._connecting = threading.Lock()
        self._proxy: Any = None
        self._made = False

    def read(self, name: str, offset: int, length: int) -> bytes:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        answer = self._ask("GET", self._path(name), headers=headers)
        check_answer(answer.status_code, answer.headers, offset, length)
        if len(answer.content) != length:
            raise exception.StoreError(f"{name}: {len(answer.content)} of {length} bytes came")
        return bytes(answer.content)

    def size(self, name: str) -> int:
        answer = self._ask("HEAD", self._path(name))
        self._check(answer, name)
        return int(answer.headers["Content-Length"])

    def exists(self, name: str) -> int | None:
        try:
            return self.size(name)
        except exception.StoreObjectMissing:
            return None

    def put(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        self._make_container()
        body = _Body(content, progress)
        answer = self._ask("PUT", self._path(name), again=body.rewind, data=body)
        self._check(answer, name)

    def entries(self, prefix: str) -> Iterator[Entry]:
        below = f"{self._prefix}/" if self._prefix else ""
        marker = ""
        while True:
            query = {"format": "json", "prefix": below + prefix, "marker": marker}
            answer = self._ask("GET", f"/{_quoted(self._container)}", params=query)
            if answer.status_code == 404:
                return
            self._check(answer, prefix)
            page = answer.json() if answer.status_code == 200 else []
            for one in page:
                when = datetime.datetime.fromisoformat(one["last_modified"])
                name = one["name"].removeprefix(below)
                moment = when.replace(tzinfo=datetime.UTC).timestamp()
                yield Entry(checked_name(name), int(one["bytes"]), moment)
            if not page:
                return
            marker = page[-1]["name"]

    def delete(self, name: str) -> None:
        answer = self._ask("DELETE", self._path(name))
        if answer.status_code != 404:
            self._check(answer, name)

    def close(self) -> None:
        with self._connecting:
            if self._proxy is not None:
                self._proxy = None

    def _path(self, name: str) -> str:
        whole = f"{self._prefix}/{checked_name(name)}" if self._prefix else checked_name(name)
        return f"/{_quoted(self._container)}/{_quoted(whole)}"

    def _make_container(self) -> None:
        if not self._made:
            self._check(self._ask("PUT", f"/{_quoted(self._container)}"), self._container)
            self._made = True

    def _check(self, answer: Any, what: str) -> None:
        try:
            if answer.status_code not in (200, 201, 202, 204):
                check_status(answer.status_code)
        except exception.StoreError as error:
            place = f"swift://{self._container}/{self._prefix}"
            raise type(error)(f"{what} in {place}: {error}") from error

    def _object_store(self) -> Any:
        with self._connecting:
            if self._proxy is None:
                try:
                    self._proxy = self._connect().object_store
                except (sdk_errors.SDKException, keystone_errors.ClientException) as error:
                    raise exception.ConfigError(
                        f"how to reach Swift is not known: {error}. Set OS_CLOUD or source an "
                        "openrc file"
                    ) from error
            return self._proxy

    def _ask(
        self, method: str, path: str, again: Callable[[], None] = lambda: None, **more: Any
    ) -> Any:
        """:raises StoreError: no answer, after some attempts."""
        # 5xx and lost connections are tried again by keystoneauth, for what can be sent again.
        retries = {"connect_retries": _ATTEMPTS} if "data" not in more else {}
        failures = 0
        while True:
            try:
                answer = self._object_store().request(
                    path, method, raise_exc=False, **retries, **more
                )
                if answer.status_code < 500 or failures == _ATTEMPTS:
                    return answer
            except (keystone_errors.RetriableConnectionFailure, OSError) as error:
                if failures == _ATTEMPTS:
                    raise exception.StoreError(f"{method} {path}: {error}") from error
            except (sdk_errors.SDKException, keystone_errors.ClientException) as error:
                raise exception.StoreRefused(f"{method} {path}: {error}") from error
            failures += 1
            again()


class _Body:
    """What requests sends piece by piece, and can ask the length of."""

    def __init__(self, content: bytes | memoryview, progress: Progress) -> None:
        self._content = memoryview(content)
        self._progress = progress
        self._sent = 0

    def __len__(self) -> int:
        return len(self._content)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as of a file."""
        most = PIECE if size < 0 else min(size, PIECE)
        piece = bytes(self._content[self._sent : self._sent + most])
        self._sent += len(piece)
        self._progress(len(piece))
        return piece

    def rewind(self) -> None:
        """From the beginning again."""
        self._progress(-self._sent)
        self._sent = 0

    def tell(self) -> int:
        """Bytes sent."""
        return self._sent

    def seek(self, position: int, _whence: int = 0) -> int:
        """Only to the beginning, which is where a redirection or a new token goes back to."""
        self.rewind()
        return position


def _quoted(text: str) -> str:
    return urllib.parse.quote(text)
