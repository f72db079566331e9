# SPDX-License-Identifier: Apache-2.0
"""Whether the link's certificates will do, before a migration finds out that they do not."""

import contextlib
import datetime
import ipaddress
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from nova_enlightened.host.installation import Finding, fail, ok, warn
from nova_enlightened.transfer.spec import TlsFiles

SOON: Final = datetime.timedelta(days=30)
"""Left of a certificate's life, when it is time to renew it."""
_USES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}


def certificates(files: TlsFiles, now: datetime.datetime) -> Iterator[Finding]:
    """Findings on the files of ``[enlightened] link_tls_...``.

    :param files: its ``peer_name`` is the name that this host's certificate has to carry.
    :param now: with a time zone.
    """
    authority = own = None
    loaded = []
    for option, path in (("link_tls_ca", files.ca), ("link_tls_certificate", files.cert)):
        try:
            certificate = x509.load_pem_x509_certificate(pathlib.Path(path).read_bytes())
        except OSError as error:
            yield _unreadable(option, path, error)
        except ValueError:
            yield fail(option, f"{path} holds no certificate in PEM", f"put one in {path}")
        else:
            loaded.append((option, certificate))
            yield _lifetime(option, path, certificate, now)
    by_option = dict(loaded)
    authority, own = by_option.get("link_tls_ca"), by_option.get("link_tls_certificate")
    if own is not None:
        yield from _names(own, files.peer_name)
        yield from _uses(own)
        if authority is not None:
            yield _issued(own, authority)
    yield from _key(files, own)


def _unreadable(option: str, path: str, error: OSError) -> Finding:
    return fail(
        option,
        f"{path}: {error.strerror}",
        f"make it readable for the user that relays run as (uid {os.geteuid()} here), or name "
        f"another file in [enlightened] {option}",
    )


def _lifetime(
    option: str, path: str, certificate: x509.Certificate, now: datetime.datetime
) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return fail(
            option, f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC", "see this host's clock"
        )
    if now >= ends:
        return fail(option, f"{path} ran out on {ends:%Y-%m-%d}", "renew it; relays that run stay")
    if ends - now < SOON:
        return warn(option, f"{path} runs out on {ends:%Y-%m-%d}", "renew it before then")
    return ok(option, f"{path}, valid until {ends:%Y-%m-%d}")


def _names(certificate: x509.Certificate, expected: str) -> Iterator[Finding]:
    option = "link_tls_certificate"
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        yield fail(option, "it names no host (no subjectAltName)", f"have {expected} put in it")
        return
    names = [name.lower() for name in held.get_values_for_type(x509.DNSName)]
    addresses = held.get_values_for_type(x509.IPAddress)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(expected) in addresses:
            yield ok(option, f"it is for {expected}")
            return
    if expected.lower() in names:
        yield ok(option, f"it is for {expected}")
    else:
        listed = ", ".join([*names, *map(str, addresses)]) or "nobody"
        yield fail(
            option,
            f"it is for {listed}, and peers expect {expected}",
            f"have {expected} put in it, or set [enlightened_agent] link_name to a name it has",
        )


def _uses(certificate: x509.Certificate) -> Iterator[Finding]:
    try:
        held = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return  # without the extension it may be used for everything
    missing = [name for use, name in _USES.items() if use not in held]
    if missing:
        yield fail(
            "link_tls_certificate",
            f"it may not be used as {' and '.join(missing)}",
            "a host is the server of guests that arrive and the client of those that leave: "
            "have both uses put in it",
        )


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> Finding:
    option = "link_tls_certificate"
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return fail(
            option,
            "it was not issued by the authority of link_tls_ca",
            "put the certificate of its authority in link_tls_ca, the same on all hosts",
        )
    return ok(option, f"issued by {authority.subject.rfc4514_string()}")


def _key(files: TlsFiles, certificate: x509.Certificate | None) -> Iterator[Finding]:
    option = "link_tls_key"
    try:
        status = os.stat(files.key)
        key = serialization.load_pem_private_key(pathlib.Path(files.key).read_bytes(), None)
    except OSError as error:
        yield _unreadable(option, files.key, error)
        return
    except TypeError:
        yield fail(option, f"{files.key} has a passphrase", "store it without one, mode 0600")
        return
    except ValueError:
        yield fail(option, f"{files.key} holds no key in PEM", "put the certificate's key there")
        return
    if certificate is not None and key.public_key() != certificate.public_key():
        yield fail(
            option,
            f"{files.key} is not the key of {files.cert}",
            "put the two that were made together in place, and reload nothing: relays read them",
        )
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        yield warn(option, f"{files.key} is open to others", f"chmod 0600 {files.key}")
    else:
        yield ok(option, f"{files.key} fits the certificate")
