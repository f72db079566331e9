# SPDX-License-Identifier: Apache-2.0
"""What befalls a VM with QEMU 10.0 and libvirt 11.3 where these differ from 7.2 and 9.0.

All the cases of ``test_faults`` run with these, too: ``ENLIGHTENED_RELEASE=trixie``.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, faults
from lab.watch import event_loop
from tests.conftest import FAILED
from tests.integration.test_faults import Kept, goes_on_at_its_source, survives

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
    pytest.mark.flaky(reruns=2),
]
LINK_MBIT = 100
"""So that pages wait at the source for some seconds when QEMU has sent its last."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    event_loop()
    run = Path(f"/run/nel-n-{os.getpid()}")
    with Lab(run=run, release="trixie", link_mbit=LINK_MBIT) as started:
        yield started


@pytest.fixture(scope="module")
def kept(lab: Lab) -> Kept:
    return Kept(lab)


@pytest.fixture(autouse=True)
def renewed(kept: Kept, request: pytest.FixtureRequest) -> Iterator[None]:
    """No case begins with what another one broke."""
    yield
    if request.node.stash[FAILED]:
        kept.lose()


def killed_after_the_last_page(departure: faults.Departure) -> None:
    departure.until_switched()
    departure.until(lambda: departure.relay("source")[1].get("phase") == "completed")
    departure.kill_relay("source")


def test_a_relay_killed_after_the_last_page_was_sent(lab: Lab, kept: Kept) -> None:
    told = survives(lab, kept.guest(), killed_after_the_last_page)
    assert told["recovered"] == 1


def test_a_relay_killed_while_it_is_handed_over(lab: Lab, kept: Kept) -> None:
    goes_on_at_its_source(lab, kept, lambda departure: departure.kill_relay("destination"))
