# SPDX-License-Identifier: Apache-2.0
"""Urgent orders: taken once, void after their time, kept over a restart."""

import json
import pathlib

import pytest

from nova_enlightened import exception
from nova_enlightened.host import orders
from nova_enlightened.host.orders import KeptOrders, UrgentOrders

A, B = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69", "11111111-3a1c-4b0e-9a3e-1f2d3c4b5a69"


def test_an_order_is_taken_once() -> None:
    table = UrgentOrders()
    placed = table.place(A, "host is contended", 60.0, now=100.0)
    assert table.take(A, now=110.0) == placed
    assert table.take(A, now=110.0) is None


def test_an_order_is_void_after_its_time() -> None:
    table = UrgentOrders()
    table.place(A, "cause", 60.0, now=100.0)
    assert table.take(A, now=160.0) is None


def test_a_new_order_takes_the_place_of_the_old_one() -> None:
    table = UrgentOrders()
    table.place(A, "first", 60.0, now=100.0)
    table.place(A, "second", 60.0, now=150.0)
    assert [order.cause for order in table.standing(now=190.0)] == ["second"]


def test_an_order_can_be_withdrawn() -> None:
    table = UrgentOrders()
    table.place(A, "cause", 60.0, now=100.0)
    assert table.withdraw(A)
    assert not table.withdraw(A)
    assert table.take(A, now=101.0) is None


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf"), orders.LONGEST_S + 1])
def test_an_order_for_no_sane_time_is_refused(ttl: float) -> None:
    with pytest.raises(exception.AgentRefused, match="can stand"):
        UrgentOrders().place(A, "cause", ttl, now=100.0)


def test_orders_do_not_pile_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MOST", 1)
    table = UrgentOrders()
    table.place(A, "cause", 60.0, now=100.0)
    with pytest.raises(exception.AgentRefused, match="stand already"):
        table.place(B, "cause", 60.0, now=100.0)
    table.place(B, "cause", 60.0, now=200.0)


def test_an_order_from_the_future_is_void() -> None:
    # The clock was wrong when it was placed: it would stand for a year.
    table = UrgentOrders()
    table.place(A, "cause", 60.0, now=1e9)
    assert table.take(A, now=1000.0) is None


def test_orders_outlive_the_agent(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "orders.json")
    KeptOrders(path, lambda: 100.0).place(A, "cause", 60.0)
    again = KeptOrders(path, lambda: 110.0)
    again.load()
    taken = again.take(A)
    assert taken is not None
    assert (taken.cause, taken.until) == ("cause", 160.0)


def test_an_order_that_was_taken_does_not_come_back(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "orders.json")
    kept = KeptOrders(path, lambda: 100.0)
    kept.place(A, "cause", 60.0)
    kept.take(A)
    again = KeptOrders(path, lambda: 110.0)
    again.load()
    assert again.standing() == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"format": 2, "orders": []}',
        '{"format": 1, "orders": [{}]}',
        '{"format": 1, "orders": [{"instance": "a", "cause": "", "placed": "x", "until": 1}]}',
        '{"format": 1, "orders": 5}',
    ],
)
def test_a_file_that_makes_no_sense_is_left_behind(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "orders.json"
    path.write_text(text)
    kept = KeptOrders(str(path), lambda: 100.0)
    kept.load()
    assert kept.standing() == ()
    kept.place(A, "cause", 60.0)
    assert json.loads(path.read_text())["orders"]


def test_a_directory_that_cannot_be_written_costs_no_order(tmp_path: pathlib.Path) -> None:
    kept = KeptOrders(str(tmp_path / "gone" / "orders.json"), lambda: 100.0)
    kept.load()
    kept.place(A, "cause", 60.0)
    assert kept.take(A) is not None
