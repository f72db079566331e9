# SPDX-License-Identifier: Apache-2.0
"""A soak as a scenario."""

from bench import registry, soak
from lab.soak import Report, Round


def report(*rounds: Round) -> Report:
    return Report(list(rounds), 60.0, 3 << 20, "libvirtd of host1")


def test_what_moved_or_stayed_is_not_lost() -> None:
    rounds = Round(1, "nothing", "ordered", "moved", 9.0), Round(2, "x", "begun", "stayed", 9.0)
    outcome = soak.outcome(report(*rounds))
    assert outcome.values == {"soak_vms_lost": [0], "soak_rss_growth_mib": [3.0]}
    assert set(outcome.values) == {m.id for m in registry.chosen(["soak"])}
    assert "1 moved" in outcome.notes[0]


def test_a_vm_that_is_not_whole_is_lost_and_told() -> None:
    lost = Round(1, "link hangs", "switched", "lost", 9.0, ("vm: 3 pages differ",))
    outcome = soak.outcome(report(lost))
    assert outcome.values["soak_vms_lost"] == [1]
    assert "round 1: vm: 3 pages differ" in outcome.notes


def test_what_was_left_behind_is_told_and_loses_no_vm() -> None:
    left = Round(1, "nothing", "ordered", "moved", 9.0, ("2 more sockets",))
    outcome = soak.outcome(report(left))
    assert outcome.values["soak_vms_lost"] == [0]
    assert "round 1: 2 more sockets" in outcome.notes
