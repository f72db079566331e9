# SPDX-License-Identifier: Apache-2.0
"""The link's TLS: each side shows a certificate for the host it should be, or nothing happens."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
import ssl

import pytest

from lab.ca import make_ca
from nova_enlightened.exception import ConfigError
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.link_events import LinkOptions, PeerTurnedAway, Refused
from nova_enlightened.transfer.tls import tls_context
from tests.functional.link_hosts import MAIN, SECRET, Hosts, certificates, files

QUICK = LinkOptions(handshake=0.5, backoff=0.01, max_backoff=0.05)
MARK = b"a page of the guest's memory"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certificates(tmp_path_factory.mktemp("other"))


def refused(hosts: Hosts) -> str:
    """Return why the source was refused, after making sure that nothing was let in."""
    hosts.until(lambda: hosts.source.saw(Refused) and hosts.destination.saw(PeerTurnedAway))
    assert not hosts.source.link.ready
    assert not hosts.destination.link.ready
    return str(hosts.source.saw(Refused)[0])


def test_nothing_of_the_guest_is_seen_on_the_wire(ca: pathlib.Path) -> None:
    with Hosts(ca) as hosts:
        hosts.open()
        hosts.source.send(MAIN, MARK * 1000)
        hosts.finish()
        assert hosts.destination.arrived[MAIN] == MARK * 1000
        assert MARK not in hosts.wire.seen
        assert hosts.wire.carried > len(MARK) * 1000


def test_plaintext_is_what_it_says_and_still_does_not_show_the_secret() -> None:
    with Hosts() as hosts:
        hosts.open()
        hosts.source.send(MAIN, MARK * 100)
        hosts.finish()
        assert MARK in hosts.wire.seen
        assert SECRET not in hosts.wire.seen


def test_an_address_in_the_certificate_is_as_good_as_a_name(ca: pathlib.Path) -> None:
    with Hosts(
        source_tls=files(ca, "host1", "192.0.2.2"), destination_tls=files(ca, "host2", "192.0.2.1")
    ) as hosts:
        hosts.open()


def test_a_destination_that_is_another_host_is_refused(ca: pathlib.Path) -> None:
    with Hosts(ca, QUICK, source_tls=files(ca, "host1", "host3")) as hosts:
        assert "host3" in refused(hosts)


def test_a_source_that_is_another_host_is_refused_and_told_so(ca: pathlib.Path) -> None:
    with Hosts(ca, QUICK, source_tls=files(ca, "host3", "host2")) as hosts:
        assert "certificate is not for host1" in refused(hosts)


def test_a_destination_of_another_ca_is_refused(ca: pathlib.Path, other_ca: pathlib.Path) -> None:
    with Hosts(ca, QUICK, destination_tls=files(other_ca, "host2", "host1")) as hosts:
        assert "CERTIFICATE_VERIFY_FAILED" in refused(hosts)


def test_a_source_of_another_ca_is_refused(ca: pathlib.Path, other_ca: pathlib.Path) -> None:
    theirs = files(other_ca, "host1", "host2")
    mixed = dataclasses.replace(theirs, ca=files(ca, "host1", "host2").ca)
    with Hosts(ca, QUICK, source_tls=mixed) as hosts:
        assert "ALERT" in refused(hosts)


def test_a_plaintext_source_is_not_let_in(ca: pathlib.Path) -> None:
    with Hosts(None, QUICK, destination_tls=files(ca, "host2", "host1")) as hosts:
        hosts.until(lambda: hosts.destination.saw(PeerTurnedAway))
        assert not hosts.source.link.ready


def test_a_tls_source_does_not_fall_back_to_plaintext(ca: pathlib.Path) -> None:
    with Hosts(None, QUICK, source_tls=files(ca, "host1", "host2")) as hosts:
        hosts.until(lambda: hosts.destination.saw(PeerTurnedAway))
        assert not hosts.source.link.ready
        assert not hosts.destination.link.ready


def test_a_client_without_a_certificate_is_refused(ca: pathlib.Path) -> None:
    context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
    with Hosts(ca, QUICK) as hosts:
        hosts.source.link.abort()
        raw = socket.create_connection(hosts.destination.link.address)
        raw.setblocking(False)
        with context.wrap_socket(
            raw, server_hostname="host2", do_handshake_on_connect=False
        ) as sock:
            while not hosts.destination.saw(PeerTurnedAway):
                with contextlib.suppress(ssl.SSLWantReadError):
                    sock.do_handshake()
                hosts.turn()
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(hosts.destination.events)


def test_an_older_tls_is_not_spoken(ca: pathlib.Path) -> None:
    for host, role in (("host1", Role.SOURCE), ("host2", Role.DESTINATION)):
        context = tls_context(files(ca, host, "host3"), role)
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("missing", ["ca", "cert", "key"])
def test_a_missing_file_is_named_before_anything_starts(ca: pathlib.Path, missing: str) -> None:
    broken = dataclasses.replace(files(ca, "host1", "host2"), **{missing: "/nonexistent.pem"})
    with pytest.raises(ConfigError, match=r"nonexistent\.pem"):
        tls_context(broken, Role.SOURCE)


def test_a_key_of_another_certificate_is_a_configuration_error(ca: pathlib.Path) -> None:
    broken = dataclasses.replace(files(ca, "host1", "host2"), key=str(ca / "host2.key"))
    with pytest.raises(ConfigError):
        tls_context(broken, Role.SOURCE)


# -- the lab's CA ------------------------------------------------------------------------------


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_making_certificates_again_changes_nothing(tmp_path: pathlib.Path) -> None:
    certificates(tmp_path)
    before = contents(tmp_path)
    certificates(tmp_path)
    assert contents(tmp_path) == before


def test_a_host_that_is_added_or_changed_gets_a_new_certificate_only(
    tmp_path: pathlib.Path,
) -> None:
    make_ca(tmp_path, {"host1": [], "host2": []})
    before = contents(tmp_path)
    make_ca(tmp_path, {"host1": [], "host2": ["192.0.2.9"], "host4": []})
    after = contents(tmp_path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"host2.pem", "host2.key", "host4.pem", "host4.key"}


def test_keys_are_readable_by_the_owner_only(tmp_path: pathlib.Path) -> None:
    certificates(tmp_path)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("*.key")} == {0}


def test_a_damaged_certificate_is_made_anew(tmp_path: pathlib.Path) -> None:
    certificates(tmp_path)
    (tmp_path / "host1.pem").write_text("not a certificate")
    certificates(tmp_path)
    tls_context(files(tmp_path, "host1", "host2"), Role.SOURCE)
