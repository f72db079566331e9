# SPDX-License-Identifier: Apache-2.0
"""What other processes of the cloud write: domains, relays' orders, files of earlier runs."""

import contextlib
import json

import numpy as np

from nova_enlightened.exception import ConfigError, HintError, PlanError
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.fault_trace import FaultTrace
from nova_enlightened.transfer import control
from nova_enlightened.transfer.player_spec import PlayerSpec
from nova_enlightened.transfer.spec import RelaySpec

FRAMES = np.array([0, 1, 0xA0, 0xBFFFF, 0xE0000, 1 << 20, (1 << 36) - 1, (1 << 63) - 1], np.int64)


def domain_memory(data: bytes) -> None:
    """A domain's XML, and the memory layout that follows from it."""
    with contextlib.suppress(HintError, PlanError):
        layout = MemoryLayout.from_domain_xml(data.decode("utf-8", "replace"))
        assert MemoryLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
        devices = [(name, count << 12) for name, _, count in layout.devices]
        space = PageSpace([*layout.likely_space().blocks(), *devices])
        pages = layout.frame_to_page(space, FRAMES)
        assert pages.min() >= -1
        assert pages.max() < space.pages


def relay_spec(data: bytes) -> None:
    """What one host's agent asks of another's, as it arrives over the bus."""
    with contextlib.suppress(ConfigError, HintError):
        spec = RelaySpec.from_json(data.decode("utf-8", "replace"))
        assert RelaySpec.from_json(spec.to_json()) == spec
        if spec.layout is not None:
            MemoryLayout.from_dict(spec.layout)


def player_spec(data: bytes) -> None:
    """What an agent tells a player to be."""
    with contextlib.suppress(ConfigError):
        spec = PlayerSpec.from_json(data.decode("utf-8", "replace"))
        assert PlayerSpec.from_json(spec.to_json()) == spec


def control_line(data: bytes) -> None:
    """A request to a relay; whatever it is, there is a line to answer it with."""
    calls = {"status": lambda: {"state": "ready"}, "end": lambda reason="": {"reason": reason}}
    reply = control.answer(data, calls)
    assert isinstance(reply["ok"], bool)
    assert b"\n" not in json.dumps(reply).encode()


def fault_trace(data: bytes) -> None:
    """A trace of an earlier run."""
    with contextlib.suppress(PlanError):
        trace = FaultTrace.decode(data)
        assert FaultTrace.decode(trace.encode()).encode() == trace.encode()
        trace.blocked()


def stored_knowledge(data: bytes) -> None:
    """Knowledge that one process of a host left for another."""
    with contextlib.suppress(HintError):
        stored.load(data)
