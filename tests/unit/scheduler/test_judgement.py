# SPDX-License-Identifier: Apache-2.0
import pytest

from nova_enlightened.contention.destinations import DestinationLimits
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.scheduler import arrival, judgement
from nova_enlightened.scheduler.judgement import Policy
from tests.unit.scheduler.requests import (
    GIB,
    Fields,
    State,
    home,
    live_migration,
    report,
    request,
)

BUSY = {"cpu_used": 3.0}
"""Three CPUs of four: a server that wants one would fill it."""


def remaining(
    spec: object, *reports: HostReport, policy: Policy | None = None, states: tuple[State, ...] = ()
) -> list[str]:
    """Names of the hosts a, b and c, or of `states`, that remain."""
    states = states or tuple(State(name) for name in "abc")
    server = arrival.read(spec, reports)
    offers = [judgement.offer(state) for state in states]
    chosen = judgement.choose(server, offers, reports, policy or Policy())
    return [state.host for state, keep in zip(states, chosen.keep, strict=True) if keep]


def test_hosts_that_are_not_heard_of_are_judged_as_stock_nova_would() -> None:
    assert remaining(request()) == ["a", "b", "c"]
    assert remaining(live_migration()) == ["a", "b", "c"]


@pytest.mark.parametrize("spec", [request(), live_migration()], ids=["new", "move"])
def test_nothing_goes_to_a_contended_host(spec: object) -> None:
    assert remaining(spec, report("b", Level.ACT)) == ["a", "c"]


def test_a_new_server_may_go_where_contention_is_only_near() -> None:
    assert remaining(request(), report("b", Level.WARN)) == ["a", "b", "c"]


def test_a_move_avoids_a_host_that_it_would_fill() -> None:
    assert remaining(live_migration(), home(), report("a", **BUSY)) == ["b", "c"]


def test_a_move_goes_to_a_full_host_rather_than_nowhere() -> None:
    contended = report("b", Level.ACT), report("c", Level.ACT)
    assert remaining(live_migration(), home(), report("a", **BUSY), *contended) == ["a"]


def test_an_urgent_move_goes_nowhere_rather_than_to_a_full_host() -> None:
    full = [report(name, **BUSY) for name in "abc"]
    assert remaining(live_migration(), home(urgent=True), *full) == []


def test_an_urgent_move_goes_to_a_host_that_can_receive_it_in_order() -> None:
    able = report("b", capable=True)
    assert remaining(live_migration(), home(urgent=True), report("a"), able) == ["b"]


def test_an_urgent_move_goes_by_stock_where_no_host_can_receive_it_in_order() -> None:
    assert remaining(live_migration(), home(urgent=True), report("a")) == ["a", "b", "c"]


def test_a_capable_host_that_is_contended_is_no_destination() -> None:
    able = report("b", Level.ACT, capable=True)
    assert remaining(live_migration(), home(urgent=True), able) == ["a", "c"]


def test_an_ordinary_move_does_not_ask_for_capability() -> None:
    assert remaining(live_migration(), home(), report("b", capable=True)) == ["a", "b", "c"]


def test_a_move_between_contended_hosts_is_refused() -> None:
    contended = [report(name, Level.ACT) for name in "abc"]
    assert remaining(live_migration(), home(), *contended) == []


def test_a_server_whose_host_is_not_heard_of_may_be_lost_and_goes_anywhere() -> None:
    contended = [report(name, Level.ACT) for name in "abc"]
    assert remaining(live_migration(), *contended) == ["a", "b", "c"]


def test_a_new_server_is_built_on_a_contended_host_if_there_is_no_other() -> None:
    contended = [report(name, Level.ACT) for name in "abc"]
    assert remaining(request(), *contended) == ["a", "b", "c"]
    assert remaining(request(), *contended, policy=Policy(refuse_new=True)) == []


def test_each_kind_of_request_can_be_left_alone() -> None:
    contended = report("b", Level.ACT)
    assert "b" in remaining(request(), contended, policy=Policy(new=False))
    assert "b" not in remaining(live_migration(), contended, policy=Policy(new=False))
    assert "b" in remaining(live_migration(), contended, policy=Policy(moves=False))
    assert "b" not in remaining(request(), contended, policy=Policy(moves=False))


def test_a_resize_may_stay_where_it_is() -> None:
    states = State("home"), State("a")
    assert remaining(request(ignore_hosts=[]), home(), states=states) == ["home", "a"]


def test_a_host_that_the_request_names_is_let_through() -> None:
    spec = request(ignore_hosts=["home"], requested_destination=Fields(host="a"))
    assert remaining(spec, home(), report("a", Level.ACT), states=(State("a"),)) == ["a"]


def test_cpus_that_are_not_offered_do_not_count() -> None:
    # Eight CPUs in the machine, of which the inventory has four and keeps two.
    large = report("a", cpus=8, cpu_used=1.5, reserved_cpus=2)
    states = State("a"), State("b")
    assert remaining(live_migration(), home(), report("b"), large, states=states) == ["b"]


def test_a_ratio_below_one_makes_less_of_a_host() -> None:
    small = State("a", cpu_allocation_ratio=0.5)
    assert remaining(live_migration(), home(), report("a", cpu_used=1.0), report("b"),
                     states=(small, State("b"))) == ["b"]  # fmt: skip


def test_a_ratio_above_one_makes_no_more_of_it() -> None:
    promised = State("a", cpu_allocation_ratio=16.0)
    assert remaining(live_migration(), home(), report("a", **BUSY), report("b"),
                     states=(promised, State("b"))) == ["b"]  # fmt: skip


def test_memory_that_is_free_by_the_inventory_but_not_really_is_not_there() -> None:
    short = report("a", memory_available=2 * GIB)
    assert remaining(live_migration(), home(), short, report("b"),
                     states=(State("a"), State("b"))) == ["b"]  # fmt: skip


def test_what_placement_has_promised_is_not_judged_again() -> None:
    # By Nova's ratio nothing is left; an operator may have set another in Placement.
    full = State("a", vcpus_used=16, free_ram_mb=0)
    assert remaining(live_migration(), home(), report("a"), states=(full,)) == ["a"]
    assert remaining(live_migration(), home(urgent=True), report("a"), states=(full,)) == ["a"]


def test_weights_go_from_contended_over_unknown_to_free() -> None:
    server = arrival.read(live_migration(), [home()])
    host, limits = judgement.offer(State("a")), DestinationLimits()
    weights = [
        judgement.weight(server, host, one, limits)
        for one in (
            report("a", Level.ACT),
            report("a", Level.WARN),
            report("a", **BUSY),
            None,
            report("a", cpu_used=1.0),
            report("a"),
        )
    ]
    assert weights == sorted(weights)
    assert weights[0] == -1.0
    assert weights[3] == 0.0
    assert weights[-1] <= 1.0


def test_a_host_that_nova_knows_nothing_of_yet_is_judged() -> None:
    fresh = State("a", 0, 0, None, 0, 0, None)
    assert remaining(request(), report("a"), states=(fresh,)) == ["a"]
