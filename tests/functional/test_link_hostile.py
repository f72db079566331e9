# SPDX-License-Identifier: Apache-2.0
"""Neighbours and men in the middle: what a certificate or a place on the wire is worth alone."""

from __future__ import annotations

import datetime
import pathlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nova_enlightened.transfer.link_events import LinkOptions, PeerTurnedAway, Refused
from nova_enlightened.transfer.spec import TlsFiles
from tests.functional.link_hosts import MAIN, Hosts, certificates, files

QUICK = LinkOptions(handshake=0.5, backoff=0.01, max_backoff=0.05)
CONTENT = bytes(range(256)) * 4096
OTHER = b"the secret of another migration."


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certificates(tmp_path_factory.mktemp("ca"))


def signed(
    ca: pathlib.Path, into: pathlib.Path, host: str, peer: str, days: tuple[int, int], named: bool
) -> TlsFiles:
    """A certificate of the real authority for `host`, valid from and to so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]))
        .issuer_name(authority.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .public_key(key.public_key())
    )
    if named:
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = builder.add_extension(names, critical=False)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    certificate = builder.sign(signer, hashes.SHA256())
    (into / f"{host}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (into / f"{host}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return TlsFiles(str(ca / "ca.pem"), str(into / f"{host}.pem"), str(into / f"{host}.key"), peer)


def nobody_is_let_in(hosts: Hosts) -> str:
    hosts.until(lambda: hosts.destination.saw(PeerTurnedAway))
    assert not hosts.source.link.ready
    assert not hosts.destination.link.ready
    return str(hosts.destination.saw(PeerTurnedAway)[0])


def test_the_right_host_without_this_migrations_secret_is_refused(ca: pathlib.Path) -> None:
    """So a compute host that is taken over feeds no VM but those it was asked to send."""
    with Hosts(ca, QUICK, source_secret=OTHER) as hosts:
        hosts.until(lambda: hosts.source.saw(Refused))
        assert "does not know" in nobody_is_let_in(hosts)


def test_another_host_with_this_migrations_secret_is_refused(ca: pathlib.Path) -> None:
    with Hosts(ca, QUICK, source_tls=files(ca, "host3", "host2")) as hosts:
        assert "certificate is not for host1" in nobody_is_let_in(hosts)


def test_a_certificate_that_ran_out_is_refused(ca: pathlib.Path, tmp_path: pathlib.Path) -> None:
    late = signed(ca, tmp_path, "host1", "host2", (-30, -1), named=True)
    with Hosts(ca, QUICK, source_tls=late) as hosts:
        assert "expired" in nobody_is_let_in(hosts)


def test_a_certificate_that_is_not_valid_yet_is_refused(
    ca: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    early = signed(ca, tmp_path, "host1", "host2", (1, 30), named=True)
    with Hosts(ca, QUICK, source_tls=early) as hosts:
        assert "not yet valid" in nobody_is_let_in(hosts)


def test_a_common_name_is_no_host_name(ca: pathlib.Path, tmp_path: pathlib.Path) -> None:
    unnamed = signed(ca, tmp_path, "host1", "host2", (-1, 30), named=False)
    with Hosts(ca, QUICK, source_tls=unnamed) as hosts:
        assert "certificate is not for host1" in nobody_is_let_in(hosts)


@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_bytes_changed_on_the_wire_cost_a_connection_and_never_a_byte(
    ca: pathlib.Path, where: float
) -> None:
    changed = []

    def change(data: bytes) -> bytes:
        if len(data) < 1000 or len(changed) >= 3:
            return data
        at = round(where * (len(data) - 1))
        changed.append(at)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    with Hosts(ca) as hosts:
        hosts.open()
        hosts.wire.change = change
        hosts.source.send(MAIN, CONTENT)
        hosts.finish()
        assert hosts.destination.arrived[MAIN] == CONTENT
        assert len(changed) == 3
        assert hosts.source.link.reconnects >= 1


def test_bytes_left_out_on_the_wire_cost_a_connection_and_never_a_byte(ca: pathlib.Path) -> None:
    dropped = []

    def change(data: bytes) -> bytes:
        if len(data) < 2000 or dropped:
            return data
        dropped.append(data)
        return data[:500] + data[600:]

    with Hosts(ca) as hosts:
        hosts.open()
        hosts.wire.change = change
        hosts.source.send(MAIN, CONTENT)
        hosts.finish()
        assert hosts.destination.arrived[MAIN] == CONTENT
        assert hosts.source.link.reconnects >= 1


def test_bytes_said_twice_on_the_wire_cost_a_connection_and_never_a_byte(ca: pathlib.Path) -> None:
    repeated = []

    def change(data: bytes) -> bytes:
        if len(data) < 2000 or repeated:
            return data
        repeated.append(data)
        return data + data

    with Hosts(ca) as hosts:
        hosts.open()
        hosts.wire.change = change
        hosts.source.send(MAIN, CONTENT)
        hosts.finish()
        assert hosts.destination.arrived[MAIN] == CONTENT
        assert hosts.source.link.reconnects >= 1
