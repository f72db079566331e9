# SPDX-License-Identifier: Apache-2.0
"""What the source relay reads in the streams and puts into the return path."""

import numpy as np
import pytest

from nova_enlightened import exception
from nova_enlightened.knowledge.space import TARGET_PAGE
from nova_enlightened.plan.transfer_plan import TransferPlan
from nova_enlightened.stream import encode
from nova_enlightened.stream import events as ev
from nova_enlightened.stream import return_path as rp
from nova_enlightened.transfer.ordering import OrderedMigration, Phase

RAM = 2
PAGES = 64
PC_RAM = ev.RamBlock("pc.ram", PAGES * TARGET_PAGE, TARGET_PAGE)
VGA = ev.RamBlock("vga", 16 * TARGET_PAGE, TARGET_PAGE)


def setup_bytes(*blocks: ev.RamBlock) -> bytes:
    return b"".join(
        (
            encode.header(),
            encode.configuration(ev.Configuration("pc-i440fx-7.2")),
            encode.postcopy_advise(),
            encode.ram_start(RAM),
            encode.block_list(blocks),
            encode.ram_end(),
            encode.footer(RAM),
        )
    )


def switch_bytes() -> bytes:
    discard = encode.ram_discard("pc.ram", [(0, PAGES * TARGET_PAGE)])
    return discard + encode.postcopy_package(b"devices") + encode.ram_part(RAM)


def page(number: int, block: str | None = None) -> bytes:
    return encode.page_header(number * TARGET_PAGE, block) + bytes(TARGET_PAGE)


def request(block: str | None, number: int) -> bytes:
    if block is not None:
        return rp.encode_request_pages(block, number * TARGET_PAGE, TARGET_PAGE)
    body = (number * TARGET_PAGE).to_bytes(8, "big") + TARGET_PAGE.to_bytes(4, "big")
    return bytes((0, 4, 0, 12)) + body


def requests_in(raw: bytes) -> list[tuple[str | None, int, int]]:
    parser = rp.ReturnPath()
    parser.receive_data(raw)
    found = []
    while (event := parser.next_event()) is not ev.NEED_DATA:
        assert isinstance(event, rp.RequestPages)
        found.append((event.block, event.start // TARGET_PAGE, event.length // TARGET_PAGE))
    return found


def feed(migration: OrderedMigration, *parts: bytes, at: float = 1.0) -> None:
    for part in parts:
        migration.forward(0, memoryview(part), at)


def in_postcopy(*blocks: ev.RamBlock) -> OrderedMigration:
    migration = OrderedMigration()
    feed(migration, setup_bytes(*(blocks or (PC_RAM,))), switch_bytes())
    return migration


def plan_of(*pages: int, total: int = PAGES) -> TransferPlan:
    return TransferPlan("heat", total, np.array(pages, np.int64), urgent=len(pages))


def test_nothing_is_requested_before_the_switch() -> None:
    migration = OrderedMigration()
    feed(migration, setup_bytes(PC_RAM))
    migration.adopt(plan_of(5), 1.0)
    assert migration.phase is Phase.PRECOPY
    assert migration.inject(1.0, planned=True) == b""


def test_pages_are_requested_in_plan_order_after_the_switch() -> None:
    migration = in_postcopy()
    migration.adopt(plan_of(40, 3, 20), 1.0)
    assert migration.phase is Phase.POSTCOPY
    asked = requests_in(migration.inject(1.0, planned=True))
    assert asked[:3] == [("pc.ram", 40, 1), ("pc.ram", 3, 1), ("pc.ram", 20, 1)]


def test_a_page_seen_in_the_stream_is_not_requested() -> None:
    migration = in_postcopy()
    migration.adopt(plan_of(40, 3), 1.0)
    feed(migration, page(40, "pc.ram"))
    assert ("pc.ram", 40, 1) not in requests_in(migration.inject(1.0, planned=True))


def test_a_plan_names_pages_of_every_block() -> None:
    migration = in_postcopy(PC_RAM, VGA)
    migration.adopt(plan_of(PAGES + 2, total=PAGES + 16), 1.0)
    assert requests_in(migration.inject(1.0, planned=True))[0] == ("vga", 2, 1)


def test_a_short_request_is_given_the_block_the_destination_named_last() -> None:
    migration = in_postcopy(PC_RAM, VGA)
    assert requests_in(migration.back(request("vga", 1), 1.0)) == [("vga", 1, 1)]
    assert requests_in(migration.back(request(None, 2), 1.0)) == [("vga", 2, 1)]


def test_a_request_cut_in_two_is_passed_on_whole() -> None:
    migration = in_postcopy()
    raw = request("pc.ram", 7)
    assert migration.back(raw[:9], 1.0) == b""
    assert migration.back(raw[9:], 1.0) == raw


def test_other_messages_pass_untouched() -> None:
    migration = in_postcopy()
    pong = bytes((0, 2, 0, 4, 0, 0, 0, 9))
    assert migration.back(pong, 1.0) == pong


def test_a_faults_latency_runs_from_its_request_to_its_page() -> None:
    migration = in_postcopy()
    migration.back(request("pc.ram", 7), 1.0)
    feed(migration, page(7, "pc.ram"), at=1.25)
    assert migration.statistics()["fault_latency_s"] == {
        "count": 1, "p50": 0.25, "p99": 0.25, "max": 0.25,
    }  # fmt: skip
    trace = migration.trace(None)
    assert trace is not None
    assert trace.entries["page"].tolist() == [7]


def test_a_request_outside_its_block_is_left_to_qemu() -> None:
    migration = in_postcopy()
    raw = request("pc.ram", PAGES + 5)
    assert migration.back(raw, 1.0) == raw
    assert migration.statistics()["pages"]["faults"] == 0


def test_an_unknown_stream_is_carried_without_requests() -> None:
    migration = OrderedMigration()
    feed(migration, b"\x11\x22\x33\x44" * 8)
    assert migration.phase is Phase.OPAQUE
    assert migration.opaque_reason is not None
    assert migration.inject(1.0, planned=True) == b""


def test_a_plan_for_another_guest_is_refused() -> None:
    migration = in_postcopy()
    with pytest.raises(exception.PlanError):
        migration.adopt(plan_of(1, total=PAGES + 1), 1.0)


def test_a_stream_cut_in_the_middle_is_an_error_that_names_the_place() -> None:
    migration = in_postcopy()
    feed(migration, page(3, "pc.ram")[:100])
    with pytest.raises(exception.StreamError, match="byte"):
        migration.forward_ended(0)


def test_the_end_of_the_stream_completes_the_migration() -> None:
    migration = in_postcopy()
    last = encode.ram_end() + encode.footer(RAM) + encode.ram_part(RAM, last=True)
    feed(migration, last + encode.ram_end() + encode.footer(RAM) + encode.eof(), at=9.0)
    assert migration.phase is Phase.COMPLETED
    assert migration.marks.completed == 9.0


def test_pages_that_are_noted_together_are_counted_when_somebody_asks() -> None:
    migration = OrderedMigration()
    feed(migration, setup_bytes(PC_RAM), encode.ram_part(RAM), page(0, "pc.ram"))
    for number in range(1, 40):
        feed(migration, page(number))
    assert migration.statistics()["pages"]["remaining"] == PAGES - 40
    feed(migration, page(40))
    assert migration.statistics()["pages"]["remaining"] == PAGES - 41
