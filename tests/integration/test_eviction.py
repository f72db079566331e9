# SPDX-License-Identifier: Apache-2.0
"""Evictions of a real guest through the relays: it is the same VM, and no page differs.

Guest memory holds a pattern that a program in the guest checks all the time; the hash of a
value that lives only in its RAM shows that it is the same VM and not one that was started anew.
"""

import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lab import Lab, migration, relays
from lab.guests import Guest
from lab.watch import event_loop
from nova_enlightened.host.eviction import Eviction, Route
from nova_enlightened.host.guest import HeldKnowledge
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.layout import MemoryLayout

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]
LINK_MBIT = 2000
ROUNDS = 20
DICE = random.Random(20)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    event_loop()
    with Lab(run=Path(f"/run/nee-test-{os.getpid()}"), link_mbit=LINK_MBIT) as started:
        yield started


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Guest:
    return lab.guest("kept", workload="checksum", wait=True)


@pytest.fixture(scope="module")
def known(guest: Guest) -> GuestKnowledge:
    """What the guest's agent says of it."""
    session = migration.arm(guest, samples=4)
    try:
        held = session.latest()
        session.disarm()
    finally:
        session.close()
    assert isinstance(held, HeldKnowledge)
    return held.knowledge


def inverted(known: GuestKnowledge) -> GuestKnowledge:
    """The hottest pages are said to be unused, and free ones to be hot."""
    return dataclasses.replace(known, heat=255 - known.heat, classes=7 - known.classes)


def invented(known: GuestKnowledge) -> GuestKnowledge:
    """Anything at all."""
    dice = np.random.default_rng(DICE.randrange(1 << 32))
    return dataclasses.replace(
        known,
        heat=dice.integers(0, 256, known.heat.size).astype(np.uint8),
        classes=dice.integers(0, 8, known.classes.size).astype(np.uint8),
        processes=tuple(
            dataclasses.replace(process, frames=dice.permutation(known.frames)[:4096])
            for process in known.processes
        ),
    )


HINTS = {
    "the guest's own": lambda known: known,
    "none": lambda known: None,
    "wrong": inverted,
    "random": invented,
}


def evict(lab: Lab, guest: Guest, hints: GuestKnowledge | None) -> dict[str, object]:
    """Move the guest to the other host; the source relay's last state."""
    source = guest.host
    destination = migration.other(lab, source)
    domain = guest.domain
    pair = relays.start_pair(
        source,
        destination,
        knowledge=hints,
        layout=MemoryLayout.from_domain_xml(domain.XMLDesc()).to_dict(),
        tls=relays.certificates(lab.run_dir / "tls", list(lab.hosts.values())),
    )
    Eviction(domain, Route(destination.libvirt_uri(remote=True), pair.migrate_uri)).run()
    assert guest.host is destination
    return migration.last_state(pair)


def assert_same_and_whole(guest: Guest, token_hash: int) -> None:
    """It has checked all of its memory since now, and found nothing."""
    before = guest.probe.latest
    assert before is not None
    deadline = time.monotonic() + 60
    while (seen := guest.probe.wait_next(5.0)) is None or seen.detail < before.detail + 2:
        assert time.monotonic() < deadline, "the guest does not go on"
    assert seen.mismatches == 0
    assert seen.token_hash == token_hash


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_no_page_differs_whatever_the_hints(
    lab: Lab, guest: Guest, known: GuestKnowledge, turn: int
) -> None:
    latest = guest.probe.latest
    assert latest is not None
    name, make = list(HINTS.items())[turn % len(HINTS)]
    time.sleep(DICE.random())  # at any moment of what the guest does
    state = evict(lab, guest, make(known))
    assert state["error"] is None
    assert state["plan_error"] is None
    assert_same_and_whole(guest, latest.token_hash)
    pages = state["pages"]
    assert isinstance(pages, dict)
    assert pages["remaining"] == 0, name
    assert (pages["injected"] > 0) is (name != "none")


def test_one_command_evicts_a_domain(lab: Lab, guest: Guest) -> None:
    latest = guest.probe.latest
    assert latest is not None
    source = guest.host
    destination = migration.other(lab, source)
    tls = relays.certificates(lab.run_dir / "tls", list(lab.hosts.values()))
    for host in (source, destination):
        (lab.run_dir / f"{host.name}.conf").write_text(
            "[enlightened]\n"
            f"link_address = {host.address}\n"
            f"link_tls_ca = {tls}/ca.pem\n"
            f"link_tls_certificate = {tls}/{host.name}.pem\n"
            f"link_tls_key = {tls}/{host.name}.key\n"
        )
    # What is put before a command stands for ssh; the peer finds its own configuration.
    peer = lab.run_dir / "peer.sh"
    peer.write_text(f'exec "$@" --config-file {lab.run_dir}/{destination.name}.conf\n')
    words = [*destination.holder.entered(["env", f"PATH={PATH}"]), "sh", str(peer)]
    done = source.run(
        [
            f"{BIN}/nova-enlightened-evict", guest.name, "--connect", source.local_uri(),
            "--to", destination.libvirt_uri(remote=True), "--peer-command", " ".join(words),
            "--peer-name", destination.name, "--own-name", source.name, "--arm", "3",
            "--config-file", f"{lab.run_dir}/{source.name}.conf", "--json",
        ],
    )  # fmt: skip
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ordered"], report["why"]
    assert report["relay"]["error"] is None
    assert guest.host is destination
    assert_same_and_whole(guest, latest.token_hash)


def test_one_command_evicts_without_a_relay_on_the_other_host(lab: Lab, guest: Guest) -> None:
    source = guest.host
    destination = migration.other(lab, source)
    done = source.run(
        [
            f"{BIN}/nova-enlightened-evict", guest.name, "--connect", source.local_uri(),
            "--to", destination.libvirt_uri(remote=True), "--peer-command", "false",
            "--arm", "1", "--json",
        ],
    )  # fmt: skip
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["ordered"]
    assert "false" in report["why"]
    assert guest.host is destination


BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
PATH = f"{BIN}:{os.environ['PATH']}"
