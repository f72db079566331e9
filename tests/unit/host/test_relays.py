# SPDX-License-Identifier: Apache-2.0
"""What a host does with a relay specification that another host asks it to run."""

import dataclasses
import pathlib
import socket

import pytest

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

ASKED = RelaySpec(
    role="destination",
    migration="6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69",
    run_directory="/run/nova-enlightened/x",
    socket="/run/nova-enlightened/x.sock",
    link_host="192.0.2.1",
    link_port=0,
    secret="00" * 32,
    tls=TlsFiles("theirs-ca", "theirs-cert", "theirs-key", "host1"),
)


def configured(tmp_path: pathlib.Path, *lines: str) -> "options.cfg.ConfigOpts":
    file = tmp_path / "test.conf"
    file.write_text("\n".join(("[enlightened]", *lines)))
    return options.read([str(file)])


def test_the_certificates_are_this_hosts_and_the_peer_is_the_one_that_asks(
    tmp_path: pathlib.Path,
) -> None:
    conf = configured(tmp_path, "link_tls_ca = a", "link_tls_certificate = b", "link_tls_key = c")
    assert relays.for_this_host(ASKED, conf).tls == TlsFiles("a", "b", "c", "host1")


def test_a_peer_that_wants_plaintext_where_tls_is_required_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(exception.ConfigError, match="link_tls"):
        relays.for_this_host(dataclasses.replace(ASKED, tls=None), configured(tmp_path))


def test_a_peer_that_wants_tls_where_it_is_off_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.ConfigError, match="link_tls"):
        relays.for_this_host(ASKED, configured(tmp_path, "link_tls = off"))


def test_the_first_free_port_of_the_range_is_taken(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        conf = configured(
            tmp_path,
            "link_address = 127.0.0.1",
            f"link_port_min = {port}",
            f"link_port_max = {port + 20}",
        )
        with relays.listen_in_range(conf) as found:
            assert port < found.getsockname()[1] <= port + 20


def test_a_range_without_a_free_port_is_told_as_such(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        conf = configured(
            tmp_path,
            "link_address = 127.0.0.1",
            f"link_port_min = {port}",
            f"link_port_max = {port}",
        )
        with pytest.raises(exception.RelayError, match=f"from {port} to {port}"):
            relays.listen_in_range(conf)
