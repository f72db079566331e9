# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from nova_enlightened.cmd import simulate
from nova_enlightened.plan.fault_trace import FaultRecorder
from nova_enlightened.plan.policies import Heat, Stock


@pytest.fixture(autouse=True)
def two_policies(monkeypatch):
    """What is installed does not matter here."""

    class Extension:
        def __init__(self, policy):
            self.name, self.obj = policy.name, policy

    monkeypatch.setattr(
        simulate, "ExtensionManager", lambda *_, **__: [Extension(Heat()), Extension(Stock())]
    )


@pytest.fixture
def trace(tmp_path):
    recorder = FaultRecorder(0.0)
    for number in range(20):
        recorder.fault(number * 7 % 256, number / 100)
    recorder.seen(np.arange(256), 0.3)
    path = tmp_path / "faults.trace"
    path.write_bytes(recorder.trace([("pc.ram", 1 << 20)], "stock", None).encode())
    return path


def test_replays_a_recorded_trace_and_prints_a_table(trace, capsys):
    assert simulate.main(["--trace", str(trace), "--seconds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "stock" in printed
    assert "heat" in printed


def test_prints_json_of_the_policies_asked_for(trace, capsys):
    assert simulate.main(["--trace", str(trace), "--seconds", "1", "--json", "--policy=heat"]) == 0
    (outcomes,) = json.loads(capsys.readouterr().out).values()
    assert list(outcomes) == ["heat"]
    assert outcomes["heat"]["recovered_s"] is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy", "imaginary"],
        ["--window", "64"],
        ["--window", "64:32:16"],
        ["--bandwidth", "0"],
        ["--knowledge", "x"],
        ["--trace", "/nonexistent"],
    ],
)
def test_what_cannot_be_is_refused_with_a_word(arguments, capsys):
    assert simulate.main(arguments) == 2
    assert "nova-enlightened-simulate:" in capsys.readouterr().err


def test_help_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit):
        simulate.main(["--help"])
    assert "ordering policy" in capsys.readouterr().out
