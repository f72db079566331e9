# SPDX-License-Identifier: Apache-2.0
"""Real files, made by the lab's authority."""

import dataclasses
import datetime
import pathlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab.ca import make_ca
from nova_enlightened.host.certificates import SOON, certificates
from nova_enlightened.host.installation import Finding, Grade, worst
from nova_enlightened.transfer.spec import TlsFiles

NOW = datetime.datetime.now(datetime.UTC)
YEAR = datetime.timedelta(days=365)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    home = tmp_path_factory.mktemp("ca")
    make_ca(home, {"compute1": ["192.0.2.7"], "compute2": []})
    make_ca(home / "other", {"compute1": []})
    return home


def files(home: pathlib.Path, peer_name: str = "compute1", host: str = "compute1") -> TlsFiles:
    return TlsFiles(
        str(home / "ca.pem"), str(home / f"{host}.pem"), str(home / f"{host}.key"), peer_name
    )


def troubles(spec: TlsFiles, now: datetime.datetime = NOW) -> list[Finding]:
    found = list(certificates(spec, now))
    assert all(one.remedy for one in found if one.grade is not Grade.OK)
    return [one for one in found if one.grade is not Grade.OK]


def test_files_as_they_should_be_are_good(authority: pathlib.Path) -> None:
    assert troubles(files(authority)) == []
    assert troubles(files(authority, "192.0.2.7")) == []
    assert troubles(files(authority, "COMPUTE1")) == []


def test_a_certificate_for_another_host_is_an_obstacle(authority: pathlib.Path) -> None:
    (found,) = troubles(files(authority, "compute3"))
    assert found.grade is Grade.FAIL
    assert "compute1" in found.words
    assert "link_name" in found.remedy


def test_a_certificate_that_runs_out_is_warned_of_before_it_does(authority: pathlib.Path) -> None:
    soon = troubles(files(authority), NOW + YEAR - SOON / 2)
    assert {one.grade for one in soon} == {Grade.WARN}
    assert worst(troubles(files(authority), NOW + 2 * YEAR)) is Grade.FAIL


def test_a_certificate_of_the_future_points_to_the_clock(authority: pathlib.Path) -> None:
    found = troubles(files(authority), NOW - YEAR)
    assert "clock" in found[0].remedy


def test_a_key_of_another_certificate_is_an_obstacle(authority: pathlib.Path) -> None:
    mixed = dataclasses.replace(files(authority), key=str(authority / "compute2.key"))
    assert [one.what for one in troubles(mixed)] == ["link_tls_key"]


def test_a_certificate_of_another_authority_is_an_obstacle(authority: pathlib.Path) -> None:
    mixed = dataclasses.replace(files(authority), ca=str(authority / "other" / "ca.pem"))
    (found,) = troubles(mixed)
    assert "link_tls_ca" in found.remedy


def test_a_key_that_others_may_read_is_warned_of(
    authority: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes((authority / "compute1.key").read_bytes())
    key.chmod(0o644)
    (found,) = troubles(dataclasses.replace(files(authority), key=str(key)))
    assert found.grade is Grade.WARN
    key.chmod(0o640)  # a group of its own is what packages do
    assert troubles(dataclasses.replace(files(authority), key=str(key))) == []


def test_a_key_with_a_passphrase_is_an_obstacle(
    authority: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (found,) = troubles(dataclasses.replace(files(authority), key=str(key)))
    assert "passphrase" in found.words


@pytest.mark.parametrize("option", ["ca", "cert", "key"])
def test_a_file_that_is_missing_is_an_obstacle(authority: pathlib.Path, option: str) -> None:
    found = troubles(dataclasses.replace(files(authority), **{option: "/nowhere.pem"}))
    assert worst(found) is Grade.FAIL
    assert any("/nowhere.pem" in one.words for one in found)


@pytest.mark.parametrize("option", ["ca", "cert", "key"])
def test_a_file_of_nonsense_is_an_obstacle(
    authority: pathlib.Path, tmp_path: pathlib.Path, option: str
) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_bytes(b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n")
    nonsense.chmod(0o600)
    found = troubles(dataclasses.replace(files(authority), **{option: str(nonsense)}))
    assert worst(found) is Grade.FAIL
