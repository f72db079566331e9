# SPDX-License-Identifier: Apache-2.0
import bz2
import gzip
import lzma
import pathlib

import pytest
import zstandard

from nova_enlightened.exception import CaptureError, CaptureRefused, StreamError
from nova_enlightened.host import save_image
from nova_enlightened.stream import stored
from tests.unit.stream import stored_streams as made
from tests.unit.stream.stored_streams import page, record

STREAM = made.whole([record("pc.ram", 9, page(9))])
PACKED = {
    0: STREAM,
    1: gzip.compress(STREAM),
    2: bz2.compress(STREAM),
    3: lzma.compress(STREAM),
    5: zstandard.compress(STREAM),
}


@pytest.mark.parametrize("compression", PACKED)
def test_a_saved_file_is_read_however_libvirt_packed_it(
    tmp_path: pathlib.Path, compression: int
) -> None:
    path = tmp_path / "saved"
    path.write_bytes(made.saved(PACKED[compression], compression=compression))
    with save_image.opened(str(path), str(tmp_path)) as image:
        assert image.header.xml == made.XML
        assert bytes(image.stream) == STREAM
        assert stored.gather(image.stream, image.parts.positions[9:10]) == page(9)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("compression, name", [(4, "lzop"), (6, "sparse")])
def test_a_packing_that_is_not_read_is_refused_by_name(
    tmp_path: pathlib.Path, compression: int, name: str
) -> None:
    path = tmp_path / "saved"
    path.write_bytes(made.saved(b"whatever", compression=compression))
    with pytest.raises(CaptureRefused, match=f"{name}.*qemu.conf"):
        with save_image.opened(str(path), str(tmp_path)):
            pass


@pytest.mark.parametrize("compression", [1, 2, 3, 5])
def test_a_packed_stream_that_is_cut_off_is_refused(
    tmp_path: pathlib.Path, compression: int
) -> None:
    path = tmp_path / "saved"
    packed = PACKED[compression][: len(PACKED[compression]) // 2]
    path.write_bytes(made.saved(packed, compression=compression))
    with pytest.raises((CaptureError, StreamError)):
        with save_image.opened(str(path), str(tmp_path)):
            pass


@pytest.mark.parametrize("keep", [0, 50, 92, 150, 300, 4000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: pathlib.Path, keep: int) -> None:
    path = tmp_path / "saved"
    path.write_bytes(made.saved(STREAM)[:keep])
    with pytest.raises((StreamError, CaptureError)):
        with save_image.opened(str(path), str(tmp_path)):
            pass


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CaptureError, match="nothing"):
        with save_image.opened(str(tmp_path / "nothing"), str(tmp_path)):
            pass
