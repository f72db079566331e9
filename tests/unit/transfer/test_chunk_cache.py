# SPDX-License-Identifier: Apache-2.0
"""The host's cache of chunks: what is kept, for whom, and what a bad disk does to it."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from nova_enlightened.transfer.chunk_cache import ChunkCache

PACK = "a" * 64
OTHER = "b" * 64
MIB = 1 << 20


@pytest.fixture
def make(tmp_path):
    made = []

    def make(limit=64 * MIB):
        cache = ChunkCache(str(tmp_path / "cache"), limit)
        cache.open()
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


def size_of(cache):
    with os.scandir(cache.directory) as listing:
        return sum(item.stat().st_blocks * 512 for item in listing)


def test_what_was_written_is_read(make):
    cache = make()
    cache.write(PACK, 1000, b"chunk one")
    assert cache.read(PACK, 1000, 9) == b"chunk one"


def test_what_was_not_written_is_not_there(make):
    cache = make()
    cache.write(PACK, 1000, b"chunk one")
    assert cache.read(PACK, 1000, 10) is None
    assert cache.read(PACK, 999, 9) is None
    assert cache.read(OTHER, 1000, 9) is None


def test_ranges_that_touch_are_read_as_one(make):
    cache = make()
    cache.write(PACK, 4, b"efgh")
    cache.write(PACK, 0, b"abcd")
    assert cache.read(PACK, 2, 4) == b"cdef"


def test_it_survives_a_restart(make):
    first = make()
    first.write(PACK, 5, b"kept")
    first.close()
    assert make().read(PACK, 5, 4) == b"kept"


def test_another_player_sees_it_at_once(make):
    one, other = make(), make()
    one.write(PACK, 0, b"x")
    assert other.read(PACK, 0, 1) == b"x"
    one.write(PACK, 50, b"later")
    assert other.read(PACK, 50, 5) == b"later"


def test_what_is_forgotten_is_not_there_for_anybody(make):
    one, other = make(), make()
    one.write(PACK, 0, b"damaged!")
    assert other.read(PACK, 0, 8) is not None
    one.forget(PACK, 2, 2)
    assert one.read(PACK, 0, 8) is None
    assert make().read(PACK, 0, 8) is None
    assert make().read(PACK, 4, 4) == b"ged!"


def test_a_log_cut_off_inside_a_record_counts_up_to_it(make):
    first = make()
    first.write(PACK, 0, b"one")
    first.write(PACK, 100, b"two")
    first.close()
    log = os.path.join(first.directory, PACK + ".have")
    os.truncate(log, os.path.getsize(log) - 3)
    again = make()
    assert again.read(PACK, 0, 3) == b"one"
    assert again.read(PACK, 100, 3) is None


def test_a_file_shorter_than_its_log_says_is_not_there(make):
    first = make()
    first.write(PACK, 0, b"lost in a crash")
    first.close()
    os.truncate(os.path.join(first.directory, PACK + ".pack"), 4)
    assert make().read(PACK, 0, 15) is None


def test_it_stays_within_its_limit(make):
    cache = make(limit=4 * MIB)
    for number in range(32):
        cache.write(hashlib.sha256(bytes([number])).hexdigest(), 0, os.urandom(MIB // 2))
    assert size_of(cache) <= 5 * MIB


def test_what_was_used_least_recently_goes_first(make):
    cache = make(limit=2 * MIB)
    for number, name in enumerate((PACK, OTHER)):
        cache.write(name, 0, os.urandom(MIB // 2))
        for kind in (".pack", ".have"):
            os.utime(os.path.join(cache.directory, name + kind), (1000 + number, 1000 + number))
    cache.write("c" * 64, 0, os.urandom(3 * MIB // 2))
    assert cache.read(PACK, 0, 1) is None
    assert cache.read("c" * 64, 0, 1) is not None


def test_a_player_whose_pack_was_evicted_by_another_goes_on(make):
    one, other = make(limit=2 * MIB), make(limit=2 * MIB)
    one.write(PACK, 0, b"x" * 1000)
    other.write(OTHER, 0, os.urandom(3 * MIB))
    assert one.read(PACK, 0, 1000) is None
    one.write(PACK, 0, b"y" * 1000)
    assert one.read(PACK, 0, 1000) == b"y" * 1000


def test_objects_are_kept_whole(make):
    cache = make()
    cache.keep_object(OTHER, b"manifest")
    assert cache.object(OTHER) == b"manifest"
    assert make().object(OTHER) == b"manifest"
    assert cache.object(PACK) is None


def test_a_full_disk_is_gone_on_without(make, monkeypatch):
    cache = make()
    cache.write(PACK, 0, b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        cache.write(PACK, 100, b"nothing of this")
    assert cache.trouble == "the cache's disk is full"
    assert cache.read(PACK, 100, 15) is None
    assert cache.read(PACK, 0, 6) == b"before"
    cache.write(PACK, 200, b"not at once again")
    assert cache.read(PACK, 200, 17) is None


def test_a_full_disk_is_tried_again_after_a_while(make, monkeypatch):
    cache = make()
    monkeypatch.setattr("nova_enlightened.transfer.chunk_cache.AGAIN_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
        cache.write(PACK, 0, b"no")
    assert cache.trouble is not None
    cache.write(PACK, 0, b"yes")
    assert cache.read(PACK, 0, 3) == b"yes"
    assert cache.trouble is None


def test_a_directory_that_cannot_be_made_is_gone_on_without(tmp_path):
    (tmp_path / "file").touch()
    cache = ChunkCache(str(tmp_path / "file" / "cache"), MIB)
    cache.open()
    cache.write(PACK, 0, b"x")
    cache.keep_object(PACK, b"x")
    assert cache.read(PACK, 0, 1) is None
    assert cache.object(PACK) is None
    assert cache.trouble is not None
    cache.close()


def test_a_limit_of_nothing_keeps_nothing(tmp_path):
    cache = ChunkCache(str(tmp_path / "cache"), 0)
    cache.open()
    cache.write(PACK, 0, b"x")
    assert cache.read(PACK, 0, 1) is None
    assert not (tmp_path / "cache").exists()


_WRITER = """
import sys
from nova_enlightened.transfer.chunk_cache import ChunkCache
cache = ChunkCache(sys.argv[1], 1 << 26)
cache.open()
for number in range(int(sys.argv[2]), 400, 4):
    cache.write("a" * 64, number * 100, bytes([number % 256]) * 100)
cache.close()
"""


def test_several_processes_fill_one_pack(make):
    cache = make()
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, cache.directory, str(number)])
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    data = cache.read(PACK, 0, 400 * 100)
    assert data == b"".join(bytes([number % 256]) * 100 for number in range(400))
