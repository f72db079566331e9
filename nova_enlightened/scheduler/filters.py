# SPDX-License-Identifier: Apache-2.0
"""``ContentionFilter``: keeps servers off hosts that are contended, or would be with them.

To use it, nova-scheduler's configuration says::

    [filter_scheduler]
    available_filters = nova.scheduler.filters.all_filters
    available_filters = nova_enlightened.scheduler.filters.ContentionFilter
    enabled_filters = ...,ContentionFilter
"""

import logging
from collections.abc import Iterable
from typing import Any

import nova.conf
from nova.scheduler import filters, utils

from nova_enlightened.conf import scheduler as options
from nova_enlightened.scheduler import arrival, judgement, reports

LOG = logging.getLogger(__name__)

LINES = 10
"""Logged of a request, the last of what there is to say; a cloud may have hosts by the thousand."""


class ContentionFilter(filters.BaseHostFilter):  # type: ignore[misc]
    """See the module. It does no I/O: what it knows of hosts came to it over the bus."""

    # What a request's first server takes of a host is not there for its second.
    run_filter_once_per_request = False

    def __init__(self) -> None:
        self._reports = reports.shared(nova.conf.CONF)
        conf = nova.conf.CONF[options.GROUP]
        self._policy = judgement.Policy(
            moves=conf.filter_migrations,
            new=conf.filter_new_servers,
            refuse_new=conf.refuse_new_servers,
            limits=options.limits(nova.conf.CONF),
        )

    def filter_all(self, filter_obj_list: Iterable[Any], spec_obj: Any) -> list[Any]:
        """The hosts that remain for a request; see :func:`judgement.choose`."""
        states = list(filter_obj_list)
        if not states or utils.request_is_rebuild(spec_obj):
            return states
        heard = self._reports.current()
        if not heard:
            return states
        server = arrival.read(spec_obj, heard)
        chosen = judgement.choose(
            server, [judgement.offer(state) for state in states], heard, self._policy
        )
        for number, line in enumerate(chosen.lines, -len(chosen.lines)):
            LOG.log(
                logging.INFO if number >= -LINES else logging.DEBUG, "%s: %s", server.uuid, line
            )
        return [state for state, keep in zip(states, chosen.keep, strict=True) if keep]

    def host_passes(self, host_state: Any, filter_properties: Any) -> bool:
        """Whether a host alone passes, for callers that ask of one."""
        return bool(self.filter_all([host_state], filter_properties))
