# SPDX-License-Identifier: Apache-2.0
"""One suite for every store that can be published in."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import openstack
import pytest

from nova_enlightened import exception
from nova_enlightened.transfer.stores import http_writing
from nova_enlightened.transfer.stores.base import open_store
from nova_enlightened.transfer.stores.http import Patience
from nova_enlightened.transfer.stores.http_writing import WritableHttpStore
from nova_enlightened.transfer.stores.swift import SwiftStore
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable, put_object
from tests.functional import store_servers

KINDS = ("file", "http", "http-without-paths", "swift", "s3")
CONTENT = bytes(range(256)) * 20000  # 5 MB


def _swift(server: store_servers.Swift) -> SwiftStore:
    return SwiftStore(
        "swift://appliances/some/prefix",
        lambda: openstack.connect(
            auth_type="admin_token",
            auth={"endpoint": server.endpoint, "token": "secret"},
            object_store_endpoint_override=server.endpoint,
        ),
    )


@pytest.fixture(params=KINDS)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WritableStore]:
    if request.param == "file":
        made = open_writable(f"file://{tmp_path}/store")
        yield made
    elif request.param == "swift":
        with store_servers.swift() as server:
            made = _swift(server)
            yield made
    elif request.param == "s3":
        boto3 = pytest.importorskip("boto3")
        moto = pytest.importorskip("moto.server")
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "one"),
            ("AWS_SECRET_ACCESS_KEY", "two"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        # What is in its buckets outlives the server.
        bucket = f"appliances-{uuid.uuid4()}"
        client.create_bucket(Bucket=bucket)
        client.close()
        made = open_writable(f"s3://{bucket}/some/prefix")
        yield made
        server.stop()
    else:
        with store_servers.nginx(tmp_path, make_paths=request.param == "http") as server:
            made = open_writable(server.url)
            yield made
            made.close()
            return
    made.close()


def test_what_was_put_is_read_by_range(store: WritableStore) -> None:
    told: list[int] = []
    store.put("objects/ab/abc", CONTENT, told.append)
    assert sum(told) == len(CONTENT)
    assert store.size("objects/ab/abc") == len(CONTENT)
    assert store.read("objects/ab/abc", 0, len(CONTENT)) == CONTENT
    assert store.read("objects/ab/abc", 1234567, 4321) == CONTENT[1234567 : 1234567 + 4321]
    assert store.read("objects/ab/abc", len(CONTENT) - 1, 1) == CONTENT[-1:]


def test_an_object_is_put_once(store: WritableStore) -> None:
    first, second = [], []
    digest = put_object(store, CONTENT, first.append)
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert put_object(store, CONTENT, second.append) == digest
    assert second == [len(CONTENT)]
    assert [one.size for one in store.entries("objects/")] == [len(CONTENT)]


def test_what_is_not_there_is_missing(store: WritableStore) -> None:
    assert store.exists("objects/ab/abc") is None
    with pytest.raises(exception.StoreObjectMissing):
        store.read("objects/ab/abc", 0, 10)
    with pytest.raises(exception.StoreObjectMissing):
        store.size("objects/ab/abc")
    assert list(store.entries("traces/")) == []


def test_a_range_past_the_end_is_an_error(store: WritableStore) -> None:
    store.put("objects/ab/abc", b"0123456789", lambda _: None)
    with pytest.raises(exception.StoreError):
        store.read("objects/ab/abc", 8, 5)
    with pytest.raises(exception.StoreError):
        store.read("objects/ab/abc", 10, 1)


def test_objects_are_listed_below_their_prefix(store: WritableStore) -> None:
    names = [f"traces/{owner}/{number}.trace" for owner in ("a", "b") for number in range(3)]
    for size, name in enumerate([*names, "objects/ab/abc"], 1):
        store.put(name, bytes(size), lambda _: None)
    listed = list(store.entries("traces/"))
    assert [(one.name, one.size) for one in listed] == [(n, s) for s, n in enumerate(names, 1)]
    assert [one.name for one in store.entries("traces/b/")] == names[3:]
    now = max(one.modified for one in listed)
    assert now > 1.7e9
    assert all(now - 3600 < one.modified for one in listed)


def test_what_is_deleted_is_gone(store: WritableStore) -> None:
    store.put("objects/ab/abc", b"content", lambda _: None)
    store.delete("objects/ab/abc")
    store.delete("objects/ab/abc")
    assert store.exists("objects/ab/abc") is None


def test_a_name_cannot_lead_out_of_the_store(store: WritableStore) -> None:
    for name in ("../x", "objects/../../x", "/etc/passwd", "objects//x"):
        with pytest.raises(exception.StoreRefused):
            store.put(name, b"", lambda _: None)


def test_an_empty_object_and_one_replaced(store: WritableStore) -> None:
    store.put("appliances/one", b"", lambda _: None)
    assert store.exists("appliances/one") == 0
    store.put("appliances/one", b"more", lambda _: None)
    assert store.read("appliances/one", 0, 4) == b"more"


# What only some of them can meet.


def test_an_upload_that_fails_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    store = open_writable(f"file://{tmp_path}")

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("objects/ab/abc", CONTENT, fail)
    assert list(store.entries("objects/")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_server_that_takes_no_put_says_so(tmp_path: Path) -> None:
    with store_servers.nginx(tmp_path) as server:
        store = open_writable(server.url.replace("/store", "/read-only"))
        with pytest.raises(exception.StoreRefused, match="does not take PUT"):
            store.put("objects/ab/abc", b"content", lambda _: None)
        store.close()


def test_a_server_that_wants_a_password_is_told_of(tmp_path: Path) -> None:
    with store_servers.nginx(tmp_path) as server:
        store = open_writable(server.url.replace("/store", "/locked"))
        with pytest.raises(exception.StoreRefused, match="netrc"):
            store.put("objects/ab/abc", b"content", lambda _: None)
        store.close()


def test_an_object_too_large_for_the_server_is_told_of(tmp_path: Path) -> None:
    with store_servers.nginx(tmp_path) as server:
        store = WritableHttpStore(server.url, Patience(attempts=1))
        with pytest.raises(exception.StoreError, match=r"client_max_body_size|closed|broke|reset"):
            store.put("objects/ab/abc", bytes(66 << 20), lambda _: None)
        store.close()


def test_swift_that_fails_twice_gets_the_whole_object_again() -> None:
    with store_servers.swift() as server:
        store = _swift(server)
        store.put("objects/ab/abc", b"first", lambda _: None)
        server.failures = 2
        told: list[int] = []
        store.put("objects/ab/abd", CONTENT, told.append)
        assert sum(told) == len(CONTENT)
        assert server.containers["appliances"]["some/prefix/objects/ab/abd"] == CONTENT
        store.close()


@pytest.mark.parametrize("url", ["swift:///x", "s3://", "s3://bucket/x?y", "swift://c?x=1"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(exception.ConfigError):
        open_store(url)


def test_webdav_is_listed_by_propfind() -> None:
    answer = b"""<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">
    <D:response><D:href>/dav/traces/</D:href><D:propstat><D:prop>
      <D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
    <D:response><D:href>/dav/traces/a.trace</D:href><D:propstat><D:prop><D:resourcetype/>
      <D:getcontentlength>7</D:getcontentlength>
      <D:getlastmodified>Mon, 12 Jan 1998 09:25:56 GMT</D:getlastmodified>
      </D:prop></D:propstat></D:response></D:multistatus>"""
    found = http_writing._multistatus(answer, "/dav/traces/")
    assert found == [("a.trace", 7, 884597156.0)]
