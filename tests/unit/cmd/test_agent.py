# SPDX-License-Identifier: Apache-2.0
"""The agent's command: bad configuration is refused at start, by option and value."""

import pathlib
import signal
import threading
from collections.abc import Iterator

import pytest
from oslo_service import backend

from nova_enlightened import exception
from nova_enlightened.cmd import agent


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process of the tests keeps its signals, its kind of threads and its log."""
    monkeypatch.setattr(backend, "init_backend", lambda kind: None)
    monkeypatch.setattr(agent.log, "setup", lambda *_: None)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[enlightened_agent]\nsample_interval = 0\n", ("sample_interval", "0")),
        ("[enlightened_agent]\ncpu_warn = 0.9\n", ("cpu_warn = 0.9", "cpu_act = 0.25")),
        ("[enlightened]\nlink_tls = perhaps\n", ("link_tls", "perhaps")),
        ("[enlightened]\nlink_port_min = 50000\n", ("link_port_min = 50000",)),
        ("no section\n", ("test.conf",)),
    ],
)
def test_bad_configuration_is_refused_by_option_and_value(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "test.conf"
    file.write_text(text)
    assert agent.main(["--config-file", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("nova-enlightened-agent: ")
    assert all(word in said for word in words), said


def test_what_is_found_out_later_is_refused_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(conf: object, ending: threading.Event) -> None:
        raise exception.ConfigError("[enlightened_agent] metrics_port = 1: in use")

    monkeypatch.setattr(agent, "run", run)
    file = tmp_path / "test.conf"
    file.touch()
    assert agent.main(["--config-file", str(file)]) == 1
    assert "metrics_port = 1" in capsys.readouterr().err


def test_a_signal_ends_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(conf: object, ending: threading.Event) -> None:
        signal.raise_signal(signal.SIGTERM)
        assert ending.wait(10)

    monkeypatch.setattr(agent, "run", run)
    file = tmp_path / "test.conf"
    file.touch()
    assert agent.main(["--config-file", str(file)]) == 0
