# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, on a bus within it and with libvirt's own test driver."""

import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

PATIENCE_S = 30.0
COMMAND = (sys.executable, "-m", "nova_enlightened.cmd.agent")


def configured(tmp_path: pathlib.Path, *lines: str) -> pathlib.Path:
    file = tmp_path / "agent.conf"
    file.write_text(
        "\n".join((
            "[DEFAULT]",
            "transport_url = fake://",
            "[enlightened]",
            "run_directory = /tmp/nee-agent-test",
            "link_tls = off",
            "[enlightened_agent]",
            "host = host1",
            "libvirt_uri = test:///default",
            *lines,
        ))
    )  # fmt: skip
    return file


@pytest.fixture
def port() -> Iterator[int]:
    """One that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    yield number
    pathlib.Path("/tmp/nee-agent-test").rmdir()


def metrics(port: int) -> str:
    """What the agent serves, once it does and has sampled."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                text: str = answer.read().decode()
        except OSError:
            text = ""
        if "nova_enlightened_guests " in text:
            return text
        time.sleep(0.1)
    raise AssertionError("no metrics in time")


def test_it_samples_and_ends_when_told_to(tmp_path: pathlib.Path, port: int) -> None:
    file = configured(tmp_path, f"metrics_port = {port}")
    with subprocess.Popen(
        [*COMMAND, "--config-file", str(file)], stderr=subprocess.PIPE, text=True
    ) as agent:
        try:
            text = metrics(port)
            agent.send_signal(signal.SIGTERM)
            _, said = agent.communicate(timeout=PATIENCE_S)
        finally:
            agent.kill()
    assert agent.returncode == 0, said
    assert 'nova_enlightened_contention_level{resource="cpu"} 0.0' in text
    assert "Traceback" not in said


def test_bad_configuration_is_refused_at_start(tmp_path: pathlib.Path) -> None:
    file = configured(tmp_path, "hold_act = soon")
    done = subprocess.run(
        [*COMMAND, "--config-file", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "hold_act" in done.stderr
    assert "soon" in done.stderr
