# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for the lab: one CA, and a certificate with its key for each host.

An operator has a PKI already; this one exists so that the lab, the tests and the demo run the
link as it is meant to be run. Keys are on P-256: small, and fast to sign with.

``ca.py DIRECTORY HOST [NAME...]`` makes one host's, in any environment with ``cryptography``: a
DevStack has no operator either.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=365)
#: A certificate with less life than this is made anew.
_MARGIN = datetime.timedelta(days=7)


def make_ca(directory: str | os.PathLike[str], hosts: Mapping[str, Sequence[str]]) -> None:
    """Make what is missing or about to expire in ``directory``; leave what is good.

    Afterwards there are ``ca.pem``, ``ca.key`` and, for each host, ``HOST.pem`` and ``HOST.key``;
    keys are readable by the owner only.

    :param hosts: host name -> further DNS names or IP addresses its certificate is for.
    """
    home = pathlib.Path(directory)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_path, ca_key_path = home / "ca.pem", home / "ca.key"
    ca = _load(ca_path)
    if ca is None or not ca_key_path.exists():
        ca_key = ec.generate_private_key(ec.SECP256R1())
        _write_key(ca_key_path, ca_key)
        ca = _sign_ca(ca_key)
        _write(ca_path, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    else:
        loaded = serialization.load_pem_private_key(ca_key_path.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        ca_key = loaded
    for host, others in hosts.items():
        names = list(dict.fromkeys([host, *others]))
        if not _is_good(home, host, names, ca):
            key = ec.generate_private_key(ec.SECP256R1())
            _write_key(home / f"{host}.key", key)
            certificate = _sign_host(names, key.public_key(), ca, ca_key)
            _write(
                home / f"{host}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644
            )


def _is_good(home: pathlib.Path, host: str, names: list[str], ca: x509.Certificate) -> bool:
    certificate = _load(home / f"{host}.pem")
    if certificate is None or not (home / f"{host}.key").exists():
        return False
    try:
        certificate.verify_directly_issued_by(ca)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return list(held) == [_general_name(name) for name in names]


def _load(path: pathlib.Path) -> x509.Certificate | None:
    """Return the certificate if there is one that lives long enough."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    good = certificate.not_valid_after_utc - _MARGIN > datetime.datetime.now(datetime.UTC)
    return certificate if good else None


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: str, issuer: x509.Name | None) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # hosts' clocks differ
        .not_valid_after(now + _LIFETIME)
    )


def _sign_ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder("nova-enlightened lab CA", None)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _sign_host(
    names: list[str],
    key: ec.EllipticCurvePublicKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    # Either host may be the source one day, so its certificate is for both sides.
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(names[0], ca.subject)
        .public_key(key)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _write_key(path: pathlib.Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, pem, 0o600)


def _write(path: pathlib.Path, content: bytes, mode: int) -> None:
    """Write whole or not at all."""
    draft = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)


if __name__ == "__main__":
    make_ca(sys.argv[1], {sys.argv[2]: sys.argv[3:]})
