# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in whatever order: limits and cool-downs hold, and no server moves twice."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened import exception
from nova_enlightened.contention.report import Level
from nova_enlightened.remediation.eviction_states import UNDER_WAY
from tests.unit.remediation.world import World

DOWN = exception.NovaUnreachable("503")
SILENT = exception.AgentUnreachable("silence")

ACTS = st.one_of(
    st.tuples(st.just("go"), st.sampled_from([Level.CALM, Level.WARN, Level.ACT, Level.ACT])),
    st.tuples(st.just("wait"), st.sampled_from([5, 30, 90])),
    st.tuples(
        st.just("migration"),
        st.sampled_from(["running", "running (post-copy)", "completed", "error", "cancelled"]),
    ),
    st.tuples(
        st.just("fail"),
        st.sampled_from(["server", "servers_on", "migrations_of", "migrations_since"]),
    ),
    st.tuples(
        st.sampled_from(["restart", "lead", "agent", "lost answer", "unheard", "operator"]),
        st.none(),
    ),
)


@contextlib.contextmanager
def a_world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        world = World(pathlib.Path(directory))
        try:
            yield world
        finally:
            world.journal.close()


def act(world: World, what: str, how: object) -> None:
    nova = world.nova
    if what == "go":
        assert isinstance(how, Level)
        world.go(how, 2)
    elif what == "wait":
        assert isinstance(how, int)
        world.now += how
    elif what == "migration":
        if nova.migrations and nova.migrations[-1].status in UNDER_WAY:
            nova.progress(str(how))
    elif what == "fail":
        nova.fail[str(how)] = DOWN
    elif what == "restart":
        world.restart()
    elif what == "lead":
        world.leads = not world.leads
    elif what == "agent":
        world.agents.error = None if world.agents.error else SILENT
    elif what == "lost answer":
        nova.lose_answer = True
    elif what == "unheard":
        nova.fail["live_migrate"] = DOWN
    elif not nova.servers["vm2"].task and not any(m.status in UNDER_WAY for m in nova.migrations):
        nova.begin("vm2")
        world.operators.add(nova.migrations[-1].id)


@settings(deadline=None, max_examples=60)
@given(st.lists(ACTS, max_size=40))
def test_limits_and_cool_downs_hold_whatever_happens(acts: list[tuple[str, object]]) -> None:
    with a_world() as world:
        asked_at: dict[str, float] = {}
        for what, how in acts:
            before = len(world.nova.requested)
            act(world, what, how)
            ours = [m for m in world.nova.migrations if m.id not in world.operators]
            assert sum(m.status in UNDER_WAY for m in ours) <= 1, "more leave at once than may"
            for uuid in world.nova.requested[before:]:
                last = asked_at.get(uuid)
                assert last is None or world.now - last > 500, "a server is moved again too soon"
                asked_at[uuid] = world.now
            causes = [one.cause for one in world.evictions]
            assert len(causes) == len(set(causes)), "two evictions for one cause"


@settings(deadline=None, max_examples=30)
@given(st.lists(ACTS, max_size=25))
def test_no_eviction_is_stuck_once_things_work_again(acts: list[tuple[str, object]]) -> None:
    with a_world() as world:
        for what, how in acts:
            act(world, what, how)
        world.leads, world.agents.error = True, None
        world.nova.fail.clear()
        for _ in range(100):
            world.go(Level.CALM)
            world.nova.finish()
        assert all(one.ended for one in world.evictions)
        assert not world.ledger.under_way()
