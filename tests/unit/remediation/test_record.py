# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import pytest

from nova_enlightened.remediation.eviction_states import Input, State
from nova_enlightened.remediation.record import REASON_LENGTH, EvictionRecord
from tests.unit.remediation.fakes import record


def test_a_record_survives_its_way_over_the_bus() -> None:
    one = record(state=State.MIGRATING, migration=7, measured_relief=0.5)
    assert EvictionRecord.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_what_a_newer_writer_adds_is_left_out() -> None:
    assert EvictionRecord.from_dict({**record().to_dict(), "moon": "full"}) == record()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"version": 1},
        {**record().to_dict(), "version": 99},
        {**record().to_dict(), "state": "dancing"},
        {**record().to_dict(), "times": 3},
        {**record().to_dict(), "times": {"decided": "soon"}},
        {**record().to_dict(), "host": None},
        {**record().to_dict(), "revision": "1"},
        [],
        None,
    ],
)
def test_what_is_not_a_record_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="record"):
        EvictionRecord.from_dict(values)


def test_each_change_counts_and_is_timed_once() -> None:
    after = record().after(Input.ORDER_TAKEN, 101.0).after(Input.CHECKED, 102.0)
    assert after.revision == 2
    assert after.times == {"detected": 99.0, "decided": 100.0, "ordered": 101.0, "requested": 102.0}
    seen = after.after(Input.ACCEPTED, 103.0).after(Input.APPEARED, 104.0)
    assert seen.after(Input.APPEARED, 105.0).at("appeared") == 104.0


def test_nothing_happens_to_one_that_has_ended() -> None:
    ended = record().after(Input.TIMED_OUT, 200.0)
    assert ended.state is State.FAILED
    assert ended.at("ended") == 200.0
    assert ended.after(Input.COMPLETED, 300.0) is ended


def test_a_reason_from_elsewhere_is_bounded() -> None:
    assert len(record().after(Input.ORDER_MISSED, 101.0, "x" * 9999).reason) == REASON_LENGTH
