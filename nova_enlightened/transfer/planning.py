# SPDX-License-Identifier: Apache-2.0
"""From a file of guest knowledge to a plan, in a thread beside the relay's event loop.

Planning a large guest takes seconds, and the pages the guest waits for cannot.
"""

import concurrent.futures
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from nova_enlightened import exception, plugins
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.guest_pages import GuestKnowledge
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.policies import OrderingPolicy
from nova_enlightened.plan.transfer_plan import TransferPlan

POLICIES = "nova_enlightened.ordering_policies"


def load_policy(name: str) -> OrderingPolicy:
    """The ordering policy installed under a name.

    :raises ConfigError: there is none.
    """
    policy: OrderingPolicy = plugins.load(POLICIES, name, f"no ordering policy {name!r}")()
    return policy


class Planner:
    """Plans one migration whenever knowledge arrives.

    The stream names its RAM blocks only moments before the switch. So the plan is drafted for the
    blocks that the layout lets expect, and taken over if they turn out to come first.

    :param wake: called from the thread when a plan (or an error) is ready.
    """

    def __init__(
        self, policy: str, layout: Mapping[str, Any] | None, wake: Callable[[], None]
    ) -> None:
        self._layout = MemoryLayout.from_dict(layout) if layout is not None else None
        self._wake = wake
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "planner")
        self._policy = self._thread.submit(load_policy, policy)
        self._draft: tuple[GuestKnowledge, PageSpace, TransferPlan] | None = None
        self._running: concurrent.futures.Future[TransferPlan] | None = None

    def know(self, knowledge: str) -> None:
        """Begin to draft a plan from the knowledge in a file, which takes an older one's place."""
        self._thread.submit(self._make_draft, knowledge).add_done_callback(lambda _: self._wake())

    def plan(self, space: PageSpace) -> None:
        """Begin to make the plan; what is known by then counts."""
        self._running = self._thread.submit(self._plan, space)
        self._running.add_done_callback(lambda _: self._wake())

    def result(self) -> TransferPlan | None:
        """A plan that became ready, once.

        :raises Exception: whatever planning raised; the migration goes on in QEMU's order.
        """
        if self._running is None or not self._running.done():
            return None
        ready, self._running = self._running, None
        return ready.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _make_draft(self, knowledge: str) -> None:
        known = stored.load(pathlib.Path(knowledge).read_bytes())
        layout = self._layout
        space = layout.likely_space() if layout is not None else PageSpace([])
        self._draft = known, space, self._plan_for(known, space)

    def _plan(self, space: PageSpace) -> TransferPlan:
        if self._draft is None:
            raise exception.HintError("the knowledge handed over was unusable")
        known, likely, draft = self._draft
        if space.blocks()[: len(likely.blocks())] == likely.blocks():
            return draft.grown(space.pages)
        return self._plan_for(known, space)

    def _plan_for(self, known: GuestKnowledge, space: PageSpace) -> TransferPlan:
        placed = known.place(self._layout, space) if self._layout is not None else None
        return self._policy.result().plan(placed, space)
