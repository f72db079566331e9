# SPDX-License-Identifier: Apache-2.0
from nova_enlightened.scheduler import arrival
from tests.unit.scheduler.requests import GIB, SERVER, Fields, home, live_migration, report, request


def test_a_new_server_does_not_move() -> None:
    assert arrival.read(request(ignore_hosts=None), [report("a")]) == arrival.Arrival(
        SERVER, vcpus=1, memory=GIB
    )


def test_a_server_that_a_host_reports_is_not_new() -> None:
    server = arrival.read(request(ignore_hosts=None), [report("a"), home()])
    assert server.moves
    assert server.home == "home"


def test_fields_that_are_not_set_are_not_loaded() -> None:
    assert arrival.read(request(), []).moves is False


def test_a_live_migration_is_known_by_the_host_it_must_not_go_to() -> None:
    server = arrival.read(live_migration(), [])
    assert server.moves
    assert server.home is None
    assert server.named is None


def test_a_move_is_urgent_if_its_home_has_an_order_for_it() -> None:
    assert arrival.read(live_migration(), [report("a"), home(urgent=True)]).urgent
    assert not arrival.read(live_migration(), [report("a"), home()]).urgent


def test_an_order_for_another_server_does_not_make_it_urgent() -> None:
    other = report("home", domains=home().domains, urgent=("another",))
    assert not arrival.read(live_migration(), [other]).urgent


def test_the_load_of_a_server_that_moves_is_known_from_its_home() -> None:
    server = arrival.read(live_migration(), [report("a"), home()])
    assert server.running is not None
    assert server.running.cpu == 0.6


def test_a_destination_named_in_the_request_is_seen() -> None:
    spec = request(ignore_hosts=["home"], requested_destination=Fields(host="a", node=None))
    assert arrival.read(spec, []).named == "a"
