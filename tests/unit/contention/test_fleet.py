# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from nova_enlightened.contention.evictions import Eviction, EvictionLimits
from nova_enlightened.contention.fleet import Fleet
from nova_enlightened.contention.fleet_load import VCPUS, FleetLoad, FleetSpec
from nova_enlightened.contention.victims import VictimLimits

SMALL = FleetSpec(hosts=50, seconds=150, surge_to=25.0)


def fleet(spec=SMALL, seed=1, **limits):
    return Fleet(spec, EvictionLimits(**limits), np.random.default_rng(seed))


def test_a_surge_is_relieved_within_the_limits():
    result = fleet(total=4).run()
    assert result.struck >= 3
    assert result.relieved_percent >= 95
    assert result.evictions > 0
    assert (result.most_at_once <= 4, result.most_per_host) == (True, 1)
    assert (result.repeat_moves, result.returns) == (0, 0)


def test_a_fleet_without_a_surge_moves_nobody():
    result = fleet(dataclasses.replace(SMALL, surged=0.0, seconds=60)).run()
    assert (result.evictions, result.others_struck) == (0, 0)


def test_a_fleet_begins_as_placement_would_have_it():
    load = FleetLoad(SMALL, np.random.default_rng(1))
    most = SMALL.filled * (SMALL.memory - SMALL.host_memory)
    assert np.bincount(load.host, load.memory).max() <= most
    assert set(load.vcpus.tolist()) <= set(VCPUS)


def test_the_same_seed_gives_the_same_trace():
    short = dataclasses.replace(SMALL, seconds=60)
    assert fleet(short).run() == fleet(short).run()


def test_hosts_whose_vms_all_stay_have_nowhere_to_go():
    result = fleet(dataclasses.replace(SMALL, bound=1.0, seconds=60)).run()
    assert result.evictions == 0
    assert result.nowhere == result.struck > 0
    assert result.relieved_percent == 100.0


def test_where_every_eviction_fails_nobody_is_moved_twice_within_the_cool_down():
    result = fleet(dataclasses.replace(SMALL, failing=1.0), total=4).run()
    assert result.failed == result.evictions > 0
    assert (result.repeat_moves, result.most_per_host) == (0, 1)


def test_short_cool_downs_are_audited_as_strictly():
    result = fleet(total=4, victims=VictimLimits(cooldown=30.0), return_after=60.0).run()
    assert (result.repeat_moves, result.returns) == (0, 0)


def test_the_audit_sees_a_move_that_should_not_be():
    simulated = fleet()
    uuid = simulated.load.uuids[0]
    simulated.history.append(Eviction(uuid, "host00007", "host00000", "c", 10.0, 20.0))
    simulated._audit(uuid, "host00007", 30.0)
    assert (simulated.result.repeat_moves, simulated.result.returns) == (1, 1)


def test_what_a_host_gives_is_never_more_than_it_has_nor_than_is_wanted():
    load = FleetLoad(SMALL, np.random.default_rng(2))
    for second in range(40):
        load.step(float(second))
        given = load.wanted - load.waiting
        assert (load.waiting >= -1e-9).all()
        assert np.bincount(load.host, given).max() <= SMALL.cpus * (1 + 1e-6)


def test_allocations_are_right_after_all_moves_have_ended():
    simulated = fleet(dataclasses.replace(SMALL, seconds=100), total=4)
    simulated.run()
    for second in range(100, 160):
        simulated.load.step(float(second))
        simulated._progress(float(second))
    assert simulated._used == {
        "VCPU": simulated._held(simulated.load.vcpus),
        "MEMORY_MB": simulated._held(simulated.load.memory),
    }


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_fleet_with_hardly_a_host(hosts):
    result = fleet(dataclasses.replace(SMALL, hosts=hosts, surged=1.0, seconds=60)).run()
    assert result.relieved + result.nowhere <= hosts
