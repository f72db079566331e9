# SPDX-License-Identifier: Apache-2.0
"""``ContentionWeigher``: prefers hosts that are calm and have room to give.

To use it, nova-scheduler's configuration says::

    [filter_scheduler]
    weight_classes = nova.scheduler.weights.all_weighers
    weight_classes = nova_enlightened.scheduler.weights.ContentionWeigher
"""

from collections.abc import Iterable
from typing import Any

import nova.conf
from nova.scheduler import utils, weights

from nova_enlightened.conf import scheduler as options
from nova_enlightened.scheduler import arrival, judgement, reports


class ContentionWeigher(weights.BaseHostWeigher):  # type: ignore[misc]
    """See the module."""

    # Fixed, so that the multiplier means the same whatever hosts are compared.
    minval = -1.0
    maxval = 1.0

    def __init__(self) -> None:
        self._reports = reports.shared(nova.conf.CONF)
        self._multiplier = nova.conf.CONF[options.GROUP].weight_multiplier
        self._limits = options.limits(nova.conf.CONF)

    def weight_multiplier(self, host_state: Any) -> float:
        """Of the host's aggregate, or of the configuration."""
        multiplier: float = utils.get_weight_multiplier(
            host_state, "contention_weight_multiplier", self._multiplier
        )
        return multiplier

    def weigh_objects(self, weighed_obj_list: Iterable[Any], weight_properties: Any) -> list[float]:
        """Of each host; see :func:`judgement.weight`."""
        heard = self._reports.current()
        known = {report.host: report for report in heard}
        server = arrival.read(weight_properties, heard)
        return [
            judgement.weight(
                server,
                judgement.offer(weighed.obj),
                known.get(weighed.obj.host),
                self._limits,
            )
            for weighed in weighed_obj_list
        ]

    def _weigh_object(self, obj: Any, weight_properties: Any) -> float:
        """Of one host. Nova asks for all at once."""
        return self.weigh_objects([weights.WeighedHost(obj, 0.0)], weight_properties)[0]
