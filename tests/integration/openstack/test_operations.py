# SPDX-License-Identifier: Apache-2.0
"""What operators do to servers of a real Nova, beside or against an urgent live migration."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.openstack import Cloud
from lab.openstack.agents import Agents
from lab.openstack.servers import Server
from tests.integration.openstack.asked import (
    HARD_WORK,
    OTHER,
    Move,
    ends_where_nova_has_it,
    moved,
    until,
    works_where_nova_has_it,
)

COMMAND_S = 180.0


@pytest.fixture(scope="module")
def server(cloud: Cloud) -> Iterator[Server]:
    """It works harder on its memory than pre-copy can follow."""
    made = Server.create(cloud, "operated", "host1")
    made.work("scattered", *HARD_WORK)
    yield made
    made.delete()
    until(lambda: cloud.api.allocations(made.uuid) == {}, 30.0, "placement holds its room")


@pytest.fixture
def harmed(cloud: Cloud) -> Iterator[Server]:
    """One of its own for a test after which its memory may not be what it was."""
    made = Server.create(cloud, "harmed", "host1")
    made.work("scattered", *HARD_WORK)
    yield made
    made.delete()


def test_what_pre_copy_cannot_move_stays_after_an_abort(cloud: Cloud, server: Server) -> None:
    source = server.host
    move = Move(cloud, server)
    server.live_migrate()
    move.reached("running")
    assert move.act("delete", "") == 202
    # Nova calls it either, as libvirt's job or its call is over first.
    assert move.ended()["status"] in ("cancelled", "failed")
    assert "running (post-copy)" not in move.seen
    until(lambda: cloud.api.server(server.uuid).task_state is None, 60.0, "Nova works on it")
    assert cloud.api.server(server.uuid).status == "ACTIVE"
    assert works_where_nova_has_it(cloud, server) == source


def test_what_pre_copy_cannot_move_leaves_by_a_force_complete(cloud: Cloud, harmed: Server) -> None:
    source = harmed.host
    move = Move(cloud, harmed)
    harmed.live_migrate()
    move.reached("running")

    def forced() -> bool:
        # Nova takes the request before libvirt has begun, and forgets it then.
        if move.look()["status"] == "running":
            move.act("post", "/action", json={"force_complete": None})
        return move.look()["status"] != "running"

    until(forced, 60.0, "it goes on by pre-copy")
    assert move.ended()["status"] == "completed"
    ends_where_nova_has_it(cloud, harmed, OTHER[source])


def test_an_abort_at_once_leaves_one_server_where_nova_has_it(
    cloud: Cloud, agents: Agents, server: Server
) -> None:
    source = server.host
    agents.order(source, server.uuid, "a test")
    move = Move(cloud, server)
    server.live_migrate()
    until(lambda: bool(move.look()), 60.0, "Nova shows no migration")
    answers = []

    def refused_or_taken() -> bool:
        if "post-copy" not in move.look()["status"]:
            answers.append(move.act("delete", ""))
        return answers[-1:] == [202] or "running (post-copy)" in move.seen or bool(
            move.look()["status"] in ("completed", "cancelled", "failed")
        )  # fmt: skip

    until(refused_or_taken, 60.0, f"neither ended nor aborted: {answers}")
    ended = move.ended()["status"]
    assert ended in ("completed", "cancelled", "failed")
    until(lambda: cloud.api.server(server.uuid).task_state is None, 60.0, "Nova works on it")
    assert cloud.api.server(server.uuid).status == "ACTIVE"
    there = works_where_nova_has_it(cloud, server)
    assert there == (OTHER[source] if ended == "completed" else source)


def manage(cloud: Cloud, *words: str, where: str = "ctl") -> "subprocess.CompletedProcess[str]":
    """Run ``nova-enlightened-manage`` where the cloud's configuration for it is."""
    etc = cloud.places.configuration
    own = "nova" if where == "ctl" else where
    holder = cloud.lab.control if where == "ctl" else cloud.lab.hosts[where].holder
    files = (f"{etc}/{own}.conf", f"{etc}/{where}-enlightened.conf")
    return holder.run(
        [cloud.places.program("nova-enlightened-manage"),
         *(word for file in files for word in ("--config-file", file)), *words],
        check=False, timeout=COMMAND_S,
    )  # fmt: skip


def test_an_operator_evicts_a_server_and_waits(cloud: Cloud, server: Server) -> None:
    source = server.host
    told = manage(cloud, "evict", server.uuid, "--wait")
    assert told.returncode == 0, told.stdout
    assert f"left {source} for {OTHER[source]}" in told.stdout
    assert "running (post-copy)" in told.stdout
    assert works_where_nova_has_it(cloud, server) == OTHER[source]


def test_a_host_and_its_guest_pass_the_check(cloud: Cloud, server: Server) -> None:
    told = manage(cloud, "check", "--guest", server.uuid, where=server.host)
    assert told.returncode == 0, told.stdout
    assert "FAIL" not in told.stdout
    assert f"guest {server.uuid}" in told.stdout


def test_block_migration_of_an_ordered_server_is_novas_own(cloud: Cloud, agents: Agents) -> None:
    with cloud.own_storage():
        server = Server.create(cloud, "own-disk", "host1")
        try:
            server.work("idle")
            agents.order("host1", server.uuid, "a test")
            move = Move(cloud, server)
            cloud.api.call(
                lambda api: api.compute.live_migrate_server(server.uuid, block_migration=True)
            )
            assert move.ended()["status"] == "completed"
            ends_where_nova_has_it(cloud, server, "host2")
            told = cloud.places.log("nova-enlightened-compute", "host1").read_text()
            assert "stock, block_migration" in told
        finally:
            server.delete()


@contextmanager
def disabled(cloud: Cloud, host: str) -> Iterator[None]:
    """Nova sends nothing there."""

    def ask(verb: str) -> None:
        def change(api: Any) -> None:
            (found,) = api.compute.services(host=host, binary="nova-compute")
            getattr(api.compute, f"{verb}_service")(found)

        cloud.api.call(change)

    ask("disable")
    try:
        yield
    finally:
        ask("enable")


def test_a_resized_server_has_its_memory_and_its_channel(cloud: Cloud) -> None:
    server = Server.create(cloud, "resized", "host1", flavor="m1.small")
    try:

        def act(status: str, name: str, *words: Any) -> None:
            def ask(api: Any) -> None:
                getattr(api.compute, name)(server.uuid, *words)
                found = api.compute.get_server(server.uuid)
                api.compute.wait_for_server(found, status=status, interval=0.5, wait=120)

            cloud.api.call(ask)

        larger = cloud.api.call(lambda api: api.compute.find_flavor("m1.lab").id)
        with disabled(cloud, "host2"):
            act("VERIFY_RESIZE", "resize_server", larger)
        act("ACTIVE", "confirm_server_resize")
        host, domain = server.domain()
        assert cloud.api.allocations(server.uuid) == {host.name: {"VCPU": 1, "MEMORY_MB": 768}}
        assert domain.maxMemory() == 768 << 10
        assert "org.openstack.enlightened.0" in domain.XMLDesc()
    finally:
        server.delete()


def test_it_still_moves_without_an_order(cloud: Cloud, server: Server) -> None:
    server.work("idle")
    source = server.host
    migration, seen = moved(cloud, server)
    assert migration["status"] == "completed", seen
    ends_where_nova_has_it(cloud, server, OTHER[source])
