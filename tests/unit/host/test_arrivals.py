# SPDX-License-Identifier: Apache-2.0
"""What an agent makes of a relay that another host asks for: paths are never the sender's."""

import dataclasses
import pathlib
from typing import Any

import pytest
from oslo_config import cfg

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.host.arrivals import Arrivals, examined
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

MIGRATION = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"


def configured(tmp_path: pathlib.Path, *lines: str) -> cfg.ConfigOpts:
    file = tmp_path / "test.conf"
    file.write_text(
        "\n".join((
            "[enlightened]",
            f"run_directory = {tmp_path}/run",
            "link_address = 127.0.0.1",
            "link_tls = off",
            *lines,
        ))
    )  # fmt: skip
    return options.read([str(file)])


def asked(tmp_path: pathlib.Path, **different: Any) -> RelaySpec:
    spec = RelaySpec(
        role="destination",
        migration=MIGRATION,
        run_directory=f"{tmp_path}/run/{MIGRATION}-destination",
        socket=f"{tmp_path}/run/{MIGRATION[:8]}.sock",
        link_host="198.51.100.1",
        link_port=22,
        secret="ab" * 32,
        tls=None,
    )
    return dataclasses.replace(spec, **different)


def test_what_is_the_senders_own_affair_is_not_taken(tmp_path: pathlib.Path) -> None:
    sent = asked(tmp_path, knowledge="/etc/shadow", layout={"a": 1}, retain=1 << 40)
    spec = examined(sent, configured(tmp_path))
    assert (spec.knowledge, spec.layout, spec.retain) == (None, None, 8 << 20)
    assert (spec.link_host, spec.link_port) == ("127.0.0.1", 0)
    assert (spec.migration, spec.secret) == (sent.migration, sent.secret)


def test_the_place_of_a_second_monitor_is_of_this_hosts_making(tmp_path: pathlib.Path) -> None:
    place = f"{tmp_path}/run/{MIGRATION}-qmp.sock"
    assert examined(asked(tmp_path, monitor=place), configured(tmp_path)).monitor == place


def test_certificates_are_this_hosts(tmp_path: pathlib.Path) -> None:
    conf = configured(
        tmp_path,
        "link_tls = required",
        "link_tls_ca = a",
        "link_tls_certificate = b",
        "link_tls_key = c",
    )
    sent = asked(tmp_path, tls=TlsFiles("x", "y", "/etc/shadow", "host1"))
    assert examined(sent, conf).tls == TlsFiles("a", "b", "c", "host1")


@pytest.mark.parametrize(
    ("different", "words"),
    [
        ({"role": "source"}, "relay that is 'source'"),
        ({"migration": "../../../etc"}, "no UUID"),
        ({"migration": MIGRATION.upper()}, "no UUID"),
        ({"migration": 7}, "no UUID"),
        ({"run_directory": "/etc/cron.d"}, "run_directory"),
        ({"socket": "/run/libvirt/libvirt-sock"}, "run_directory"),
        ({"monitor": "/etc/cron.d/x-qmp.sock"}, "monitor's place"),
        ({"monitor": 7}, "monitor's place"),
        ({"secret": "zz" * 32}, "hexadecimal"),
        ({"tls": TlsFiles("a", "b", "c", "host\n1")}, "no name of a host"),
        ({"tls": TlsFiles("a", "b", "c", "host1")}, "link_tls"),
    ],
)
def test_what_no_agent_asks_for_is_refused(
    tmp_path: pathlib.Path, different: dict[str, Any], words: str
) -> None:
    with pytest.raises(exception.ConfigError, match=words):
        examined(asked(tmp_path, **different), configured(tmp_path))


class Started:
    """Stands in for ``relays.start``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.specs: list[RelaySpec] = []
        self._error = error
        monkeypatch.setattr(relays, "start", self)

    def __call__(self, spec: RelaySpec, listener: Any, **_: Any) -> relays.RunningRelay:
        listener.close()
        if self._error is not None:
            raise self._error
        self.specs.append(spec)
        return relays.RunningRelay(spec, 1)


def arrivals(tmp_path: pathlib.Path) -> Arrivals:
    conf = configured(tmp_path)
    return Arrivals(conf, "192.0.2.7", RelayUpkeep(conf.enlightened.run_directory, 60.0))


def test_the_answer_says_where_the_relay_listens(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    answer = arrivals(tmp_path).start(asked(tmp_path).to_json())
    assert answer == {"link_host": "192.0.2.7", "link_port": started.specs[0].link_port}
    assert answer["link_port"] >= 49216


def test_a_message_delivered_twice_starts_one_relay(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    ours = arrivals(tmp_path)
    ours.start(asked(tmp_path).to_json())
    with pytest.raises(exception.RelayError, match="already"):
        ours.start(asked(tmp_path).to_json())
    assert len(started.specs) == 1


def test_a_relay_that_does_not_start_leaves_no_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, exception.RelayError("no"))
    with pytest.raises(exception.RelayError, match="no"):
        arrivals(tmp_path).start(asked(tmp_path).to_json())
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"tls": 1}', "null"])
def test_what_is_no_specification_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(exception.ConfigError, match="specification"):
        arrivals(tmp_path).start(text)
