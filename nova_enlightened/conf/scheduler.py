# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[enlightened_scheduler]``, read by nova-scheduler from Nova's files."""

from oslo_config import cfg

from nova_enlightened.contention import destinations

GROUP = "enlightened_scheduler"

ALL_OPTS = [
    cfg.FloatOpt(
        "report_max_age",
        default=10.0,
        min=1.0,
        max=3600.0,
        help="""
Seconds for which a host's report of its contention counts.

A host whose last report is older is unknown, and is treated as stock Nova would treat it. Too
short, and hosts become unknown whenever the message bus is slow; too long, and a host that has
relieved itself is avoided for that much longer once its agent has stopped. Clocks of compute and
scheduler hosts have to agree to well within this; if the filter never refuses a host that
``nova-enlightened-manage hosts`` shows as contended, compare them.
""",
    ),
    cfg.MultiStrOpt(
        "transport_url",
        default=[],
        secret=True,
        help="""
Message bus of a cell whose compute hosts report on it, as ``nova-manage cell_v2 list_cells``
shows it. May be given several times, once for each cell.

Without any it is the scheduler's own ``[DEFAULT] transport_url``, which is right where all
services of Nova share one bus. Where cells have their own, hosts of a cell that is not named here
are unknown, and treated as stock Nova would treat them.
""",
    ),
    cfg.BoolOpt(
        "filter_migrations",
        default=True,
        help="""
Whether ``ContentionFilter`` keeps servers that move off hosts that are contended, or might be
once the server has arrived.

A live migration finds "No valid host" when every host left is contended, an urgent one already
when none has room: it would only carry the contention on. Evacuations, and moves to a host that
the request names, are let through.
Turn it off to have hosts preferred by ``ContentionWeigher`` only.
""",
    ),
    cfg.BoolOpt(
        "filter_new_servers",
        default=True,
        help="""
Whether ``ContentionFilter`` keeps new servers off hosts that are contended.

Contention passes, often within a minute, so on a cloud with few hosts this makes placement uneven
for a reason that is soon gone. Turn it off to have calm hosts preferred by ``ContentionWeigher``
only.
""",
    ),
    cfg.BoolOpt(
        "refuse_new_servers",
        default=False,
        help="""
Whether a new server is refused when every host left is contended.

By default it is built on one of them nevertheless, because capacity that was promised and is
slow beats none. With this, creating it fails with "No valid host". It has no effect without
``filter_new_servers``.
""",
    ),
    cfg.FloatOpt(
        "destination_cpu_limit",
        default=0.85,
        min=0.0,
        max=1.0,
        help="""
Share of the CPUs offered by a host that may be wanted once a server that moves has arrived.

A host past it counts as full: an urgent move never goes there, another only if no host has room.
Higher fills hosts better and lets one eviction cause the next; lower leaves more evictions with
"No valid host".
""",
    ),
    cfg.FloatOpt(
        "destination_memory_reserve",
        default=0.08,
        min=0.0,
        max=1.0,
        help="""
Share of a host's memory that has to be available once a server that moves has arrived.

A host below it counts as full, see ``destination_cpu_limit``. Guests seldom use all their memory
at first and more of it later: lower it only where memory is not overcommitted.
""",
    ),
    cfg.FloatOpt(
        "weight_multiplier",
        default=2.0,
        help="""
How much ``ContentionWeigher`` counts among Nova's weighers, which mostly count 1.0 each.

Higher sends servers to calm hosts even where others have more room on paper; 0.0 ignores
contention. Negative values prefer contended hosts and are of use in tests only. The key
``contention_weight_multiplier`` in a host aggregate's metadata overrides it for its hosts.
""",
    ),
]


def _group() -> cfg.OptGroup:
    return cfg.OptGroup(
        name=GROUP,
        title="Contention in scheduling",
        help="""
How nova-scheduler uses what hosts report of their contention. Read where ``[filter_scheduler]``
names ``nova_enlightened.scheduler.filters.ContentionFilter`` or
``nova_enlightened.scheduler.weights.ContentionWeigher``.
""",
    )


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group and its options on `conf`."""
    conf.register_group(_group())
    conf.register_opts(ALL_OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The group with its options, as ``oslo-config-generator`` wants them."""
    return [(_group(), ALL_OPTS)]


def limits(conf: cfg.ConfigOpts) -> destinations.DestinationLimits:
    """When a host is full."""
    ours = conf[GROUP]
    return destinations.DestinationLimits(
        age=ours.report_max_age,
        cpu=ours.destination_cpu_limit,
        memory=ours.destination_memory_reserve,
    )


def check(conf: cfg.ConfigOpts) -> None:
    """No option here contradicts another."""
