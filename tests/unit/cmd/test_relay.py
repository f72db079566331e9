# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-relay``, as an operator or the other host's command calls it."""

import pathlib

import pytest

from nova_enlightened.cmd import relay as command
from nova_enlightened.transfer.spec import RelaySpec

MIGRATION = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"


def asked_for(top: pathlib.Path) -> RelaySpec:
    """A relay that was asked for and answers nobody yet."""
    directory = top / f"{MIGRATION}-destination"
    directory.mkdir()
    spec = RelaySpec(
        role="destination",
        migration=MIGRATION,
        run_directory=str(directory),
        socket=str(top / "s"),
        link_host="127.0.0.1",
        link_port=0,
        secret="0" * 64,
        tls=None,
    )
    spec.save(directory)
    return spec


def test_a_relay_that_does_not_answer_yet_is_ended_too(tmp_path: pathlib.Path) -> None:
    spec = asked_for(tmp_path)
    assert command.main(["stop", str(tmp_path), MIGRATION]) == 0
    assert pathlib.Path(spec.unwanted).exists()


def test_that_there_is_no_such_relay_is_said(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["stop", str(tmp_path), MIGRATION]) == 1
    assert f"no relay of migration {MIGRATION}" in capsys.readouterr().err
