# SPDX-License-Identifier: Apache-2.0
"""From a file of guest knowledge to a plan, in a thread beside the relay's event loop.

Planning a large guest takes seconds, and the pages the guest waits for cannot.
"""

import concurrent.futures
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from stevedore.driver import DriverManager

from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.layout import MemoryLayout
from nova_enlightened.knowledge.space import PageSpace
from nova_enlightened.plan.policies import OrderingPolicy
from nova_enlightened.plan.transfer_plan import TransferPlan

POLICIES = "nova_enlightened.ordering_policies"


def load_policy(name: str) -> OrderingPolicy:
    """The ordering policy installed under a name.

    :raises stevedore.exception.NoMatches: there is none.
    """
    policy: Any = DriverManager(POLICIES, name, invoke_on_load=True).driver
    return cast(OrderingPolicy, policy)


class Planner:
    """Plans one migration whenever knowledge arrives.

    :param wake: called from the thread when a plan (or an error) is ready.
    """

    def __init__(
        self, policy: str, layout: Mapping[str, Any] | None, wake: Callable[[], None]
    ) -> None:
        self._layout = MemoryLayout.from_dict(layout) if layout is not None else None
        self._wake = wake
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "planner")
        self._policy = self._thread.submit(load_policy, policy)
        self._running: concurrent.futures.Future[TransferPlan] | None = None

    def plan(self, knowledge: str, space: PageSpace) -> None:
        """Begin to plan from the knowledge in a file; an older plan under way is forgotten."""
        self._running = self._thread.submit(self._plan, knowledge, space)
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

    def _plan(self, knowledge: str, space: PageSpace) -> TransferPlan:
        known = stored.load(pathlib.Path(knowledge).read_bytes())
        placed = known.place(self._layout, space) if self._layout is not None else None
        return self._policy.result().plan(placed, space)
