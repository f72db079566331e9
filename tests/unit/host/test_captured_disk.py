# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil
import stat
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova_enlightened.exception import CaptureError
from nova_enlightened.host import captured_disk

MIB = 1 << 20
needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(1, 200_000)), max_size=6),
    st.integers(1, 4 * MIB),
)
def test_parts_have_all_data_of_a_sparse_file_and_no_more(
    tmp_path: pathlib.Path, writes: list[tuple[int, int]], size: int
) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        for number, (at, length) in enumerate(writes):
            file.seek(at)
            file.write(bytes([number + 1]) * length)
        file.truncate(size)
    expected = path.read_bytes()
    got = bytearray(-(-size // 4096) * 4096)
    end = 0
    for offset, content in captured_disk.filled_parts(str(path), 4096):
        assert offset % 4096 == 0
        assert len(content) % 4096 == 0
        assert offset >= end
        end = offset + len(content)
        got[offset:end] = content
    assert bytes(got[:size]) == expected
    assert not any(got[size:])


def test_an_empty_disk_has_no_parts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 8 * MIB)
    assert list(captured_disk.filled_parts(str(path), 4096)) == []
    assert captured_disk.size_of(str(path)) == 8 * MIB


def test_a_disk_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CaptureError, match="nothing"):
        list(captured_disk.filled_parts(str(tmp_path / "nothing"), 4096))
    with pytest.raises(CaptureError, match="nothing"):
        captured_disk.size_of(str(tmp_path / "nothing"))


@needs_qemu_img
def test_a_chain_of_images_becomes_one_file_that_only_its_owner_reads(
    tmp_path: pathlib.Path,
) -> None:
    base, top, raw = (tmp_path / name for name in ("base.raw", "top.qcow2", "out"))
    base.write_bytes(b"b" * MIB)
    for words in (["create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(top), "3M"],):
        subprocess.run(["qemu-img", *words], check=True)
    captured_disk.flatten(str(top), "qcow2", str(raw))
    assert raw.read_bytes() == b"b" * MIB + bytes(2 * MIB)
    assert raw.stat().st_blocks * 512 < 2 * MIB
    assert stat.S_IMODE(raw.stat().st_mode) == 0o600


@needs_qemu_img
def test_a_raw_disk_with_the_header_of_another_format_stays_raw(tmp_path: pathlib.Path) -> None:
    secret, disk, raw = (tmp_path / name for name in ("secret", "disk", "out"))
    secret.write_bytes(b"secret" * 1000)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(disk)]
    subprocess.run(words, check=True)
    captured_disk.flatten(str(disk), "raw", str(raw))
    assert b"secretsecret" not in raw.read_bytes()
    assert raw.read_bytes()[:4] == b"QFI\xfb"


@needs_qemu_img
def test_what_qemu_img_cannot_read_is_told_in_its_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk").write_bytes(b"no image")
    with pytest.raises(CaptureError, match="format"):
        captured_disk.flatten(str(tmp_path / "disk"), "qcow2", str(tmp_path / "out"))
