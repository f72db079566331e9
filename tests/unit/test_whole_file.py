# SPDX-License-Identifier: Apache-2.0
"""A file that is there whole, or as it was."""

import pathlib
import stat

import pytest

from nova_enlightened import whole_file


def test_it_takes_the_place_of_what_was_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("a long text that was there before")
    path.chmod(0o644)
    whole_file.write(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_stay_as_they_are(tmp_path: pathlib.Path) -> None:
    whole_file.write(str(tmp_path / "a.trace"), b"\0\xff")
    assert (tmp_path / "a.trace").read_bytes() == b"\0\xff"


def test_what_cannot_be_written_leaves_the_old(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        whole_file.write(path, "new")
    assert path.read_text() == "old"
