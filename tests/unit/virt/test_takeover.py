# SPDX-License-Identifier: Apache-2.0
"""How a migration has ended whose nova-compute has."""

import itertools
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from nova_enlightened.host.standing import Standing
from nova_enlightened.virt import takeover
from nova_enlightened.virt.journal import Entry, Journal
from nova_enlightened.virt.outcome import End, Outcome
from nova_enlightened.virt.takeover import Takeover, decided

SPLIT = (Standing.POSTCOPY, Standing.FAILED, Standing.SWITCHING)
WAIT_S = 20.0
ENTRY = Entry(
    "2f4d4a55-6c5a-4f0f-8a5f-0a33c4b3f1f0",
    "0b4e76a1-88a4-4f13-9df6-5dcb1d1f2a10",
    "host2",
    False,
    {"nova_object.name": "LibvirtLiveMigrateData"},
)
LOST = {"state": "lost", "why": "QEMU at the destination has ended"}


def end(here: Standing, there: Standing, agent: Mapping[str, Any] | None = None) -> End | None:
    found = decided(here, there, agent or {})
    return None if found is None else found.end


@pytest.mark.parametrize("there", Standing)
@pytest.mark.parametrize("agent", [{}, {"state": "unknown"}, {"state": "moved"}, LOST])
def test_nothing_is_decided_while_libvirt_of_the_source_does_not_answer(
    there: Standing, agent: dict[str, Any]
) -> None:
    assert end(Standing.UNKNOWN, there, agent) is None


@pytest.mark.parametrize("there", Standing)
def test_what_executes_at_its_source_has_stayed(there: Standing) -> None:
    assert end(Standing.EXECUTES, there) is End.STAYED


@pytest.mark.parametrize(("here", "there"), list(itertools.product(SPLIT, Standing)))
@pytest.mark.parametrize("agent", [{}, {"state": "resuming"}, {"state": "unknown"}])
def test_what_is_split_is_waited_for(
    here: Standing, there: Standing, agent: dict[str, Any]
) -> None:
    assert end(here, there, agent) is None


@pytest.mark.parametrize("here", [Standing.GONE, Standing.ENDED])
def test_what_executes_at_its_destination_alone_has_moved(here: Standing) -> None:
    assert end(here, Standing.EXECUTES) is End.MOVED


@pytest.mark.parametrize("there", [Standing.GONE, Standing.ENDED, Standing.UNKNOWN])
def test_what_libvirt_says_has_migrated_has_moved(there: Standing) -> None:
    assert end(Standing.GONE, there) is End.MOVED


@pytest.mark.parametrize("there", SPLIT)
def test_what_is_on_its_last_pages_is_waited_for(there: Standing) -> None:
    assert end(Standing.GONE, there) is None


@pytest.mark.parametrize("there", SPLIT)
def test_after_a_reboot_of_the_source_what_waits_for_pages_is_lost(there: Standing) -> None:
    assert end(Standing.ENDED, there) is End.LOST_HERE


@pytest.mark.parametrize("there", [Standing.GONE, Standing.ENDED])
def test_what_has_ended_on_both_hosts_is_lost(there: Standing) -> None:
    assert end(Standing.ENDED, there) is End.LOST_THERE


def test_after_a_reboot_of_the_source_a_silent_destination_decides_nothing() -> None:
    assert end(Standing.ENDED, Standing.UNKNOWN) is None
    assert end(Standing.ENDED, Standing.UNKNOWN, {"state": "unknown"}) is None


@pytest.mark.parametrize("here", [*SPLIT, Standing.GONE])
def test_what_the_agent_gives_up_at_the_destination_is_lost_there(here: Standing) -> None:
    assert decided(here, Standing.UNKNOWN, LOST) == Outcome(End.LOST_THERE, LOST["why"])


def test_what_the_agent_gives_up_at_the_source_is_lost_here() -> None:
    assert end(Standing.ENDED, Standing.POSTCOPY, LOST) is End.LOST_HERE


class Records:
    """In place of Nova's: fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.held = 0
        self.ended: list[Outcome] = []

    def hold(self, entry: Entry) -> None:
        self.held += 1

    def end(self, entry: Entry, outcome: Outcome) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the bus is down")
        self.ended.append(outcome)


class Case:
    """One departure that is taken up, and looks at `seen` for as long as that lasts."""

    def __init__(
        self, top: pathlib.Path, records: Records, seen: list[tuple[Standing, Standing]]
    ) -> None:
        self.journal = Journal(str(top), "host1")
        self.journal.keep(ENTRY)
        self.seen = seen
        self.done = threading.Event()
        self.takeover = Takeover(self.journal, records, self.look, lambda *_: self.done.set())

    def look(self, entry: Entry) -> tuple[Standing, Standing, Mapping[str, Any]]:
        here, there = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        return here, there, {}

    def run(self) -> None:
        self.takeover.take_up(ENTRY)
        assert self.done.wait(WAIT_S)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "LOOK_S", 0.001)
    monkeypatch.setattr(takeover, "AGAIN_S", 0.001)


def test_it_is_shown_as_migrating_and_ended_once_it_has_arrived(tmp_path: pathlib.Path) -> None:
    records = Records()
    seen = [(Standing.POSTCOPY, Standing.POSTCOPY)] * 5 + [(Standing.GONE, Standing.EXECUTES)]
    case = Case(tmp_path, records, seen)
    case.run()
    assert records.held == 1
    assert [one.end for one in records.ended] == [End.MOVED]
    assert case.journal.get(ENTRY.instance) is None


def test_one_look_that_others_contradict_ends_nothing(tmp_path: pathlib.Path) -> None:
    records = Records()
    seen = [(Standing.EXECUTES, Standing.UNKNOWN), (Standing.POSTCOPY, Standing.POSTCOPY)] * 3
    case = Case(tmp_path, records, [*seen, (Standing.GONE, Standing.EXECUTES)])
    case.run()
    assert [one.end for one in records.ended] == [End.MOVED]


def test_the_entry_stays_until_novas_record_is_true(tmp_path: pathlib.Path) -> None:
    records = Records(failures=3)
    case = Case(tmp_path, records, [(Standing.EXECUTES, Standing.GONE)])
    kept: list[Entry | None] = []
    end = records.end

    def watched(entry: Entry, outcome: Outcome) -> None:
        kept.append(case.journal.get(ENTRY.instance))
        end(entry, outcome)

    records.end = watched  # type: ignore[method-assign]
    case.run()
    assert kept == [ENTRY] * 4
    assert case.journal.get(ENTRY.instance) is None


def test_the_entry_of_a_lost_one_stays_for_the_guard(tmp_path: pathlib.Path) -> None:
    case = Case(tmp_path, Records(), [(Standing.ENDED, Standing.GONE)])
    case.run()
    entry = case.journal.get(ENTRY.instance)
    assert entry is not None
    assert entry.lost == "QEMU has ended on both hosts"


def test_one_that_is_stopped_leaves_the_entry_to_the_next(tmp_path: pathlib.Path) -> None:
    records = Records()
    case = Case(tmp_path, records, [(Standing.POSTCOPY, Standing.POSTCOPY)])
    case.takeover.stop()
    case.takeover.take_up(ENTRY)
    for thread in threading.enumerate():
        if thread.name == "departure-takeover":
            thread.join(WAIT_S)
    assert case.journal.get(ENTRY.instance) == ENTRY
    assert records.ended == []
