# SPDX-License-Identifier: Apache-2.0
"""From reports, servers and past evictions to what is to be done: drives ``contention``."""

import uuid
from collections.abc import Iterable, Mapping

from oslo_config import cfg

from nova_enlightened import exception, plugins
from nova_enlightened.conf import remediation as options
from nova_enlightened.contention import evictions
from nova_enlightened.contention.destinations import Demand, DestinationLimits
from nova_enlightened.contention.evictions import Decision, EvictionLimits, Heard
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.contention.victims import Resource, VictimLimits, VictimPolicy, VmFacts
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.remediation.record import EvictionRecord

NAMESPACE = "nova_enlightened.victim_policies"


def limits_of(conf: cfg.ConfigOpts) -> EvictionLimits:
    """The limits that the configuration sets."""
    ours = conf[options.GROUP]
    return EvictionLimits(
        per_host=ours.max_evictions_per_host,
        into_host=ours.max_evictions_into_host,
        total=ours.max_evictions,
        host_cooldown=ours.host_cooldown,
        return_after=ours.return_after,
        report_age=ours.report_max_age,
        armed=ours.armed_per_host,
        victims=VictimLimits(cooldown=ours.vm_cooldown),
        destinations=DestinationLimits(age=ours.report_max_age),
    )


def memory_of(limits: EvictionLimits) -> float:
    """Seconds for which a past eviction matters."""
    return max(limits.host_cooldown, limits.return_after, limits.victims.cooldown)


def load_policy(name: str) -> VictimPolicy:
    """An installed victim policy. :raises ConfigError: there is none of that name."""
    wrong = f"[{options.GROUP}] victim_policy = {name} is not installed"
    policy: VictimPolicy = plugins.load(NAMESPACE, name, wrong)()
    return policy


def decide(
    reports: Iterable[HostReport],
    facts: Mapping[str, VmFacts],
    known: Mapping[str, bool],
    records: Iterable[EvictionRecord],
    now: float,
    limits: EvictionLimits,
    policy: VictimPolicy,
) -> list[Decision]:
    """One round.

    :param known: by host, whether `facts` holds its servers. Nothing is decided about a contended
        host whose servers are not known yet.
    :param records: evictions under way and those within :func:`memory_of`.
    """
    heard = {
        report.host: Heard(report, min(report.at, now))
        for report in reports
        if report.level is Level.CALM or known.get(report.host, False)
    }
    pasts = [past_of(record) for record in records]
    running = [past for past in pasts if past.ended_at is None]
    history = [past for past in pasts if past.ended_at is not None]
    return evictions.decide(heard, facts, running, history, now, limits, policy)


def past_of(record: EvictionRecord) -> evictions.Eviction:
    """A record as ``contention`` takes it. A server that has left runs no more, even while it is
    being verified whether that helped.
    """
    left = record.at("completed")
    ended = record.at("ended")
    return evictions.Eviction(
        uuid=record.instance,
        source=record.host,
        destination=record.destination or record.expected or None,
        cause=record.cause,
        ordered_at=record.at("decided") or 0.0,
        ended_at=left if left is not None else ended,
        demand=Demand(record.vcpus, record.memory, record.cpu),
        moved=left is not None,
    )


def record_of(
    decision: Decision, report: HostReport, detected: float, now: float, *, proposed: bool = False
) -> EvictionRecord:
    """A new eviction, decided or only proposed.

    :param detected: when the host was first seen to be contended.
    """
    candidate = decision.candidate
    if candidate is None:
        raise exception.EvictionError(f"{decision.host}: nobody was chosen")
    memory = candidate.resource is Resource.MEMORY
    times = {"detected": detected, "decided": now}
    return EvictionRecord(
        eviction=str(uuid.uuid4()),
        cause=decision.cause,
        host=decision.host,
        instance=candidate.uuid,
        state=State.PROPOSED if proposed else State.DECIDED,
        why=decision.reason,
        resource=str(candidate.resource),
        expected=decision.expected or "",
        vcpus=candidate.vcpus,
        memory=candidate.memory,
        cpu=candidate.cpu,
        predicted_relief=candidate.relief_memory if memory else candidate.relief_cpus,
        predicted_cost=candidate.cost_s,
        before=report.memory_available if memory else report.cpu_waiting,
        times={**times, "ended": now} if proposed else times,
    )


def relief(record: EvictionRecord, report: HostReport) -> tuple[bool, float]:
    """Whether the host of an eviction is relieved, and by how much, as of a later report."""
    if record.resource == Resource.MEMORY:
        return report.memory_level < Level.ACT, report.memory_available - record.before
    return report.cpu_level < Level.ACT, record.before - report.cpu_waiting
