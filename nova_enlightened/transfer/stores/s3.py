# SPDX-License-Identifier: Apache-2.0
"""A store in a bucket of S3: ``s3://bucket/prefix``. Needs boto3 (``nova-enlightened[s3]``).

Credentials, region and endpoint are what boto3 finds: ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL_S3`` and so on. Hosts that only read a public bucket need none of that, nor
boto3: give them its ``https`` URL as the store.
"""

import contextlib
import io
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.transfer.stores.base import checked_name
from nova_enlightened.transfer.stores.writing import Entry, Progress

_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})
_PASSING: Final = frozenset({"408", "429", "500", "502", "503", "504", "SlowDown"})


class S3Store:
    """Made without I/O; boto3's clients may be used by several threads.

    :param url: ``s3://bucket`` or ``s3://bucket/prefix``. The bucket has to be there.
    :param connect: makes a client of S3.
    """

    def __init__(self, url: str, connect: Callable[[], Any] | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query:
            raise exception.ConfigError(f"{url!r} is not s3://BUCKET/PREFIX")
        self._bucket = parts.netloc
        self._prefix = f"{path}/" if (path := parts.path.strip("/")) else ""
        self._connect = connect or _client
        self._connecting = threading.Lock()
        self._made: Any = None

    def read(self, name: str, offset: int, length: int) -> bytes:
        span = f"bytes={offset}-{offset + length - 1}"
        with self._translated(name):
            answer = self._client().get_object(Range=span, **self._key(name))
            with answer["Body"] as body:
                data = bytes(body.read())
        told = str(answer.get("ContentRange", ""))
        if not told.startswith(f"bytes {offset}-"):
            raise exception.RangesIgnored(f"{name}: the store ignores byte ranges")
        if len(data) < length:
            raise exception.StoreCorrupt(f"{name} ends at byte {offset + len(data)}")
        return data

    def size(self, name: str) -> int:
        with self._translated(name):
            return int(self._client().head_object(**self._key(name))["ContentLength"])

    def exists(self, name: str) -> int | None:
        try:
            return self.size(name)
        except exception.StoreObjectMissing:
            return None

    def put(self, name: str, content: bytes | memoryview, progress: Progress) -> None:
        with self._translated(name):
            self._client().upload_fileobj(
                io.BytesIO(content), self._bucket, self._prefix + checked_name(name),
                Callback=progress,
            )  # fmt: skip

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._translated(prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for one in page.get("Contents", ()):
                    name = checked_name(str(one["Key"]).removeprefix(self._prefix))
                    yield Entry(name, int(one["Size"]), one["LastModified"].timestamp())

    def delete(self, name: str) -> None:
        with self._translated(name):
            self._client().delete_object(**self._key(name))

    def close(self) -> None:
        with self._connecting:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_name(name)}

    def _client(self) -> Any:
        with self._connecting:
            if self._made is None:
                self._made = self._connect()
            return self._made

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except exception.EnlightenedError:
            raise
        except Exception as error:
            raise _translation(f"{name} in s3://{self._bucket}/{self._prefix}", error) from error


def _client() -> Any:
    """:raises ConfigError: boto3 is not installed, or finds no region or the like."""
    try:
        import boto3
        from botocore import exceptions as errors
    except ImportError as error:
        raise exception.ConfigError(
            "s3:// needs boto3: pip install 'nova-enlightened[s3]'. To read a public bucket, name "
            "its https URL as the store"
        ) from error
    try:
        return boto3.client("s3")
    except errors.BotoCoreError as error:
        raise exception.ConfigError(f"how to reach S3 is not known: {error}") from error


def _translation(what: str, error: Exception) -> exception.EnlightenedError:
    """By boto3's name of the error: its classes are there only where it is installed."""
    answer = getattr(error, "response", None)
    code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
    names = {kind.__name__ for kind in type(error).__mro__}
    if code in _MISSING:
        return exception.StoreObjectMissing(f"{what}: {error}")
    if code == "InvalidRange" or code == "416":
        return exception.StoreCorrupt(f"{what}: the object is shorter than that")
    if "NoCredentialsError" in names:
        return exception.StoreRefused(f"{what}: {error}: set AWS_PROFILE or AWS_ACCESS_KEY_ID")
    if code in _PASSING or "HTTPClientError" in names or "IncompleteReadError" in names:
        return exception.StoreError(f"{what}: {error}")
    if code or "BotoCoreError" in names or "S3UploadFailedError" in names:
        return exception.StoreRefused(f"{what}: {error}")
    raise error
