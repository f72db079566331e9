# SPDX-License-Identifier: Apache-2.0
"""A relay's specification."""

import dataclasses
import pathlib
import stat

import pytest

from nova_enlightened import exception
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

SPEC = RelaySpec(
    role="source",
    migration="6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69",
    run_directory="/run/nova-enlightened/x",
    socket="/run/nova-enlightened/x.sock",
    link_host="192.0.2.1",
    link_port=0,
    secret="00" * 32,
    tls=TlsFiles("ca.pem", "cert.pem", "key.pem", "host2"),
)


def test_it_survives_being_written_and_read() -> None:
    assert RelaySpec.from_json(SPEC.to_json()) == SPEC


def test_plaintext_is_written_as_such() -> None:
    plain = dataclasses.replace(SPEC, tls=None)
    assert RelaySpec.from_json(plain.to_json()).tls is None


def test_a_peer_that_does_not_know_a_word_is_not_told_it_for_nothing() -> None:
    assert "monitor" not in SPEC.to_json()
    monitored = dataclasses.replace(SPEC, monitor="/run/x-qmp.sock")
    assert RelaySpec.from_json(monitored.to_json()) == monitored


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tls": null, "surprise": 1}', "null"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(exception.ConfigError):
        RelaySpec.from_json(text)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(exception.ConfigError, match="role"):
        dataclasses.replace(SPEC, role="observer")


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(exception.ConfigError, match="secret"):
        dataclasses.replace(SPEC, secret="00" * 8)


def test_the_file_that_holds_the_secret_is_private(tmp_path: pathlib.Path) -> None:
    SPEC.save(tmp_path / "run")
    file = tmp_path / "run" / "spec.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert RelaySpec.from_json(file.read_text()) == SPEC
