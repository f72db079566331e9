# SPDX-License-Identifier: Apache-2.0
"""What is measured: the identifiers, their units and the bars they must reach."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Better(enum.StrEnum):
    """Which way a measure is good."""

    HIGHER = "higher"
    LOWER = "lower"


class UnknownMeasure(ValueError):
    """A measure id that does not exist was asked for."""


@dataclass(frozen=True)
class Measure:
    """One figure of the results.

    ``id``: its key in the results. ``scenario``: the module of ``bench`` that measures it; one
    run of a scenario may give several figures. ``title``: what it is, in a line. ``unit``: ""
    is a ratio. ``bar``: what its median has to reach, None when it is only reported.
    """

    id: str
    scenario: str
    title: str
    unit: str
    bar: float | None
    better: Better

    def met(self, median: float) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        return median >= self.bar if self.better is Better.HIGHER else median <= self.bar


def _ratio(id: str, scenario: str, title: str, bar: float | None, better: Better) -> Measure:
    return Measure(id, scenario, title, "", bar, better)


MEASURES: tuple[Measure, ...] = (
    _ratio(
        "scattered_recovery_ratio_qemu7",
        "scattered_qemu7",
        "hot pages scattered, QEMU 7.2: switchover to 90 % of baseline, best stock / ours",
        4.0,
        Better.HIGHER,
    ),
    _ratio(
        "scattered_recovery_ratio_qemu10",
        "scattered_qemu10",
        "hot pages scattered, QEMU 10: switchover to 90 % of baseline, best stock / ours",
        2.0,
        Better.HIGHER,
    ),
    _ratio(
        "scattered_over_limit",
        "scattered_qemu7",
        "hot pages scattered: ours / (hot bytes / bandwidth)",
        1.3,
        Better.LOWER,
    ),
    _ratio(
        "contiguous_over_stock",
        "contiguous",
        "hot pages contiguous: switchover to 90 % of baseline, ours / stock",
        1.1,
        Better.LOWER,
    ),
    _ratio(
        "redis_work_lost_ratio",
        "redis",
        "redis, zipf load: work lost, stock / ours",
        2.0,
        Better.HIGHER,
    ),
    _ratio(
        "order_to_executing_over_bare",
        "scattered_qemu7",
        "order to executing at the destination, ours / bare libvirt post-copy",
        1.2,
        Better.LOWER,
    ),
    _ratio(
        "contention_precopy_ratio",
        "contention",
        "two VMs on one core, one leaves: work lost by both, pre-copy / ours",
        5.0,
        Better.HIGHER,
    ),
    _ratio(
        "contention_postcopy_ratio",
        "contention",
        "two VMs on one core, one leaves: work lost by both, stock post-copy / ours",
        1.5,
        Better.HIGHER,
    ),
    _ratio(
        "relay_over_direct",
        "relay",
        "throughput through the relays / QEMU to QEMU directly, unshaped, plain",
        0.9,
        Better.HIGHER,
    ),
    Measure(
        "relay_cpu_s_per_gb",
        "relay",
        "CPU time of both relays for a gigabyte (10^9 bytes) carried, plain",
        "s/GB",
        None,
        Better.LOWER,
    ),
    _ratio(
        "relay_tls_over_plain",
        "relay",
        "throughput through the relays, TLS / plain",
        None,
        Better.HIGHER,
    ),
    _ratio(
        "hardened_over_plain_throughput",
        "relay",
        "throughput through the relays: TLS and a link that resumes / the same without TLS",
        0.7,
        Better.HIGHER,
    ),
    Measure(
        "cut_30s_survived_of_50",
        "faults",
        "link cut for 30 s after the switch: VMs that go on, no page differs, never two copies",
        "VMs",
        50.0,
        Better.HIGHER,
    ),
    Measure(
        "relay_killed_survived_of_50",
        "faults",
        "a relay of either side killed at a random moment: VMs that go on, as above",
        "VMs",
        50.0,
        Better.HIGHER,
    ),
    Measure(
        "restart_nova_compute_of_20",
        "restarts",
        "nova-compute of the source killed at a random moment: one copy, alive, on record as it is",
        "VMs",
        20.0,
        Better.HIGHER,
    ),
    Measure(
        "orderer_killed_survived_of_20",
        "faults",
        "who ordered the migration killed at a random moment: VMs that go on, as above",
        "VMs",
        20.0,
        Better.HIGHER,
    ),
    Measure(
        "restart_host_agent_of_20",
        "faults",
        "the agent of either host killed and started at a random moment: VMs that go on, as above",
        "VMs",
        20.0,
        Better.HIGHER,
    ),
    Measure(
        "restart_libvirtd_of_20",
        "faults",
        "libvirtd of either host killed and started at a random moment: VMs that go on, as above",
        "VMs",
        20.0,
        Better.HIGHER,
    ),
    Measure(
        "fleet_relieved_percent",
        "fleet",
        "simulated fleet, a tenth surges: hosts relieved of those that have anywhere to go",
        "%",
        95.0,
        Better.HIGHER,
    ),
    Measure(
        "fleet_repeat_moves",
        "fleet",
        "the same: VMs moved again within their cool-down, or back where they came from",
        "moves",
        0.0,
        Better.LOWER,
    ),
    Measure(
        "monitor_core_percent_100_domains",
        "monitor",
        "the agent of a host with 100 guests, sampling each second: CPU time, of one core",
        "%",
        1.0,
        Better.LOWER,
    ),
    Measure(
        "detect_to_order_s",
        "cloud",
        "real Nova: load rises, to the eviction ordered",
        "s",
        4.0,
        Better.LOWER,
    ),
    _ratio(
        "order_to_executing_over_force_complete",
        "cloud",
        "real Nova: decided to executing there, ours / stock with an immediate force-complete",
        1.0,
        Better.LOWER,
    ),
    _ratio(
        "story_precopy_ratio",
        "cloud",
        "real Nova, a host relieves itself: work lost by both, stock pre-copy / ours",
        4.0,
        Better.HIGHER,
    ),
    _ratio(
        "story_postcopy_ratio",
        "cloud",
        "real Nova, a host relieves itself: work lost by both, stock post-copy / ours",
        1.5,
        Better.HIGHER,
    ),
    Measure(
        "soak_vms_lost",
        "soak",
        "evictions to and fro for an hour, faults at random: VMs lost",
        "VMs",
        0.0,
        Better.LOWER,
    ),
    Measure(
        "soak_rss_growth_mib",
        "soak",
        "the same: memory that the long-lived process grew by that grew most",
        "MiB",
        24.0,
        Better.LOWER,
    ),
    Measure(
        "fuzz_crashes",
        "fuzz",
        "inputs that break a parser, after 2 million executions of each",
        "inputs",
        0.0,
        Better.LOWER,
    ),
    Measure(
        "steady_load_orders",
        "cloud",
        "real Nova: evictions decided in ten minutes of a steady uneven load",
        "evictions",
        0.0,
        Better.LOWER,
    ),
    Measure(
        "ping_pong_completed_of_20",
        "cloud",
        "real Nova: evictions to and fro without a restart that completed, allocations right",
        "moves",
        20.0,
        Better.HIGHER,
    ),
    _ratio(
        "stream_lab_create_ratio",
        "cloud_streaming",
        "real Nova, 100 Mbit/s: create to the service's first answer, Glance's image / ours",
        5.0,
        Better.HIGHER,
    ),
    _ratio(
        "stream_100_full_ratio",
        "streaming",
        "appliance at 100 Mbit/s, 10 ms: start to 90 % of full rate, whole image first / ours",
        10.0,
        Better.HIGHER,
    ),
    _ratio(
        "stream_100_plain_ratio",
        "streaming",
        "the same, but the whole image is not compressed, as stock writes it / ours",
        None,
        Better.HIGHER,
    ),
    _ratio(
        "stream_100_linear_ratio",
        "streaming",
        "the same: on demand with a linear background / ours",
        6.0,
        Better.HIGHER,
    ),
    _ratio(
        "stream_100_qemu_http_ratio",
        "streaming",
        "the same: memory first, disk by QEMU's http driver with copy on read / ours",
        3.0,
        Better.HIGHER,
    ),
    _ratio(
        "stream_20_full_ratio",
        "streaming",
        "appliance at 20 Mbit/s, 30 ms: start to 90 % of full rate, whole image first / ours",
        10.0,
        Better.HIGHER,
    ),
    Measure(
        "stream_bytes_percent",
        "streaming",
        "bytes fetched until 90 % of full rate, of the stored appliance",
        "%",
        15.0,
        Better.LOWER,
    ),
    _ratio(
        "stream_second_start_over_restore",
        "streaming",
        "second start on a host, to the first answer: ours / virsh restore from local files",
        1.0,
        Better.LOWER,
    ),
    Measure(
        "stream_pages_differing",
        "streaming",
        "pages of streamed memory that are not as captured",
        "pages",
        0.0,
        Better.LOWER,
    ),
    Measure(
        "stream_stall_s_per_min_interactive",
        "streaming",
        "session at 20 Mbit/s, 30 ms: seconds a minute that its user waits beyond local",
        "s/min",
        None,
        Better.LOWER,
    ),
)

BY_ID: dict[str, Measure] = {measure.id: measure for measure in MEASURES}


def chosen(ids: Iterable[str]) -> tuple[Measure, ...]:
    """The measures of these ids, in the registry's order; all of them for no id.

    A scenario's name stands for all its measures. Raises UnknownMeasure.
    """
    wanted = {id for id in ids if id}
    known = {*BY_ID, *(measure.scenario for measure in MEASURES)}
    if wanted - known:
        raise UnknownMeasure(
            f"no measure {', '.join(sorted(wanted - known))}; there are {', '.join(BY_ID)}"
        )
    return tuple(
        measure
        for measure in MEASURES
        if not wanted or measure.id in wanted or measure.scenario in wanted
    )


def scenarios(measures: Iterable[Measure]) -> tuple[str, ...]:
    """The scenarios that give these measures; those of one lab release stay together."""
    names = list(dict.fromkeys(measure.scenario for measure in measures))
    return tuple(sorted(names, key=lambda name: name.endswith("qemu10")))
