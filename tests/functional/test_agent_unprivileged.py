# SPDX-License-Identifier: Apache-2.0
"""The agent as its unit starts it: an ordinary user with four capabilities that it gives up."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from nova_enlightened import privsep
from tests.functional.test_agent_process import COMMAND, PATIENCE_S, configured, metrics
from tests.functional.test_privsep import HELD, USER

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives a process capabilities"
)


@pytest.fixture
def top() -> Iterator[pathlib.Path]:
    """Where a directory has to be made that only root can make; sockets want a short name."""
    directory = pathlib.Path(f"/run/nea-{os.getpid()}")
    yield directory
    directory.rmdir()


@pytest.fixture
def port() -> int:
    """One that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    return number


def readable_python(tmp_path: pathlib.Path) -> list[str]:
    """Words before a command that let another user read this Python, wherever it is installed."""
    closed = [path for path in pathlib.Path(sys.base_prefix).parents if not path.stat().st_mode & 1]
    if not closed:
        return []
    aside = tmp_path / "python"
    aside.mkdir()
    program = (
        f"mount --bind {sys.base_prefix} {aside} && mount -t tmpfs -o mode=755 tmpfs {closed[-1]}"
        f' && mkdir -p {sys.base_prefix} && mount --bind {aside} {sys.base_prefix} && exec "$@"'
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", program, "sh"]


@pytest.fixture
def agent(
    tmp_path: pathlib.Path, top: pathlib.Path, port: int
) -> Iterator["subprocess.Popen[str]"]:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    file = configured(tmp_path, f"metrics_port = {port}")
    file.write_text(file.read_text().replace("/tmp/nee-agent-test", str(top)))
    file.chmod(0o644)
    each = ",".join(f"+{name}" for name in HELD.split(","))
    words = [
        *readable_python(tmp_path), "setpriv",
        f"--reuid={USER}", f"--regid={USER}", "--clear-groups", f"--inh-caps={each}",
        f"--ambient-caps={each}", f"--bounding-set=-all,{each}", "--no-new-privs",
        *COMMAND, "--config-file", str(file),
    ]  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def status(pid: int, name: str) -> str:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split(":", 1)[1].strip()
    raise LookupError(name)


def children(pid: int) -> set[int]:
    return set(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_it_works_without_a_capability_of_its_own(
    agent: "subprocess.Popen[str]", port: int, top: pathlib.Path
) -> None:
    assert "nova_enlightened_guests " in metrics(port)
    assert set(status(agent.pid, "Uid").split()) == {str(USER)}
    for name in ("CapEff", "CapPrm", "CapAmb"):
        assert int(status(agent.pid, name), 16) == 0
    made = top.stat()
    assert made.st_uid == USER
    assert not made.st_mode & 0o022


def test_everything_it_starts_but_its_contexts_has_no_capability(
    agent: "subprocess.Popen[str]", port: int
) -> None:
    metrics(port)
    held = [int(status(pid, "CapEff"), 16) for pid in children(agent.pid)]
    assert sum(mask != 0 for mask in held) == len(privsep.CONTEXTS)


def test_it_ends_with_its_contexts_when_told_to(agent: "subprocess.Popen[str]", port: int) -> None:
    metrics(port)
    contexts = [pid for pid in children(agent.pid) if int(status(pid, "CapEff"), 16)]
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, said
    assert "Traceback" not in said
    deadline = time.monotonic() + PATIENCE_S
    for pid in contexts:
        while pathlib.Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)  # whoever adopted it collects it
