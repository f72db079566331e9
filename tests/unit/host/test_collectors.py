# SPDX-License-Identifier: Apache-2.0
"""Collectors over the files and answers of a host that is all in this test."""

import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import libvirt
import pytest

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.contention.report import DomainSample
from nova_enlightened.host import files
from nova_enlightened.host.collectors import cgroups, domains, link, reading, usage
from nova_enlightened.host.collectors.reading import Reading, Surroundings
from tests.unit.host import captured

WEB = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"


class FakeHost:
    """Files by path, and libvirt's answer."""

    def __init__(self, **group: Any) -> None:
        self.files: dict[str, str] = {}
        self.records: list[tuple[Any, dict[str, Any]]] = []
        self.asked: list[int] = []
        self.reads: list[str] = []
        self.options = types.SimpleNamespace(
            **{"guest_cpus": "", "pressure_directory": "/proc/pressure", "link_bandwidth": 0}
            | group
        )
        self.link_options = types.SimpleNamespace(link_address="192.0.2.7")

    def surroundings(self) -> Surroundings:
        return Surroundings(self.options, self.link_options, lambda: self, self.read, self.listing)

    def read(self, path: str) -> str | None:
        self.reads.append(path)
        return self.files.get(path)

    def listing(self, path: str) -> Sequence[str]:
        below = (name.removeprefix(f"{path}/") for name in self.files if name.startswith(path))
        return sorted({name.split("/")[0] for name in below})

    def getAllDomainStats(self, wanted: int, flags: int) -> list[tuple[Any, dict[str, Any]]]:
        self.asked.append(wanted)
        if wanted & libvirt.VIR_DOMAIN_STATS_BALLOON:
            return self.records
        return [
            (domain, {k: v for k, v in said.items() if not k.startswith("balloon.")})
            for domain, said in self.records
        ]

    def runs(self, said: Mapping[str, Any], uuid: str = WEB, number: int = 1) -> None:
        domain = types.SimpleNamespace(
            UUIDString=lambda: uuid, ID=lambda: number, name=lambda: "instance-1"
        )
        self.records = [(domain, dict(said))]

    def qemu(self, tid: str = "11", **more: str) -> None:
        """A QEMU process 10 with one vCPU thread."""
        self.files["/run/libvirt/qemu/instance-1.pid"] = "10\n"
        self.files[f"/proc/10/task/{tid}/comm"] = "CPU 0/KVM\n"
        self.files["/proc/10/task/10/comm"] = "qemu-system-x86\n"
        for name, text in more.items():
            self.files[f"/proc/10/task/{tid}/{name}"] = text


def without(said: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if not key.startswith(prefix)}


# -- guests -----------------------------------------------------------------------------------


def test_a_domain_is_sampled_as_libvirt_counts_it() -> None:
    host = FakeHost()
    host.runs(captured.DOMAIN_STATISTICS)
    found = domains.DomainStatistics(host.surroundings()).collect(0.0, Reading())
    assert found.domains == (DomainSample(WEB, 1, 10.77, 0.669063323, 786432, 574360),)


def test_memory_is_asked_for_now_and_then_and_remembered() -> None:
    host = FakeHost()
    host.runs(captured.DOMAIN_STATISTICS)
    collector = domains.DomainStatistics(host.surroundings())
    samples = [collector.collect(float(t), Reading()).domains for t in range(6)]
    asked = [bool(wanted & libvirt.VIR_DOMAIN_STATS_BALLOON) for wanted in host.asked]
    assert asked == [True, False, False, False, False, True]
    assert all(found and found[0].memory == 786432 for found in samples)


def test_a_domain_that_began_since_is_asked_for_its_memory_at_once() -> None:
    host = FakeHost()
    collector = domains.DomainStatistics(host.surroundings())
    collector.collect(0.0, Reading())
    host.runs(captured.DOMAIN_STATISTICS)
    collector.collect(1.0, Reading())
    found = collector.collect(2.0, Reading())
    assert found.domains is not None
    assert found.domains[0].resident == 574360


def test_run_delay_comes_from_the_kernel_where_libvirt_does_not_say() -> None:
    host = FakeHost()
    host.runs(without(captured.DOMAIN_STATISTICS, "vcpu.0.delay"))
    host.qemu(schedstat=captured.SCHEDSTAT)
    found = domains.DomainStatistics(host.surroundings()).collect(0.0, Reading())
    assert found.pids == {WEB: 10}
    assert found.domains is not None
    assert found.domains[0].run_delay == pytest.approx(1.421583438)


def test_a_vcpu_thread_that_ends_is_looked_for_again() -> None:
    host = FakeHost()
    host.runs(without(captured.DOMAIN_STATISTICS, "vcpu.0.delay"))
    host.qemu(schedstat=captured.SCHEDSTAT)
    collector = domains.DomainStatistics(host.surroundings())
    collector.collect(0.0, Reading())
    del host.files["/proc/10/task/11/schedstat"], host.files["/proc/10/task/11/comm"]
    host.qemu("12", schedstat=captured.SCHEDSTAT)
    collector.collect(1.0, Reading())
    found = collector.collect(2.0, Reading())
    assert found.domains is not None
    assert found.domains[0].run_delay == pytest.approx(1.421583438)


def test_cpu_time_is_that_of_the_vcpus_where_there_is_no_other() -> None:
    host = FakeHost()
    host.runs(without(captured.DOMAIN_STATISTICS, "cpu."))
    found = domains.DomainStatistics(host.surroundings()).collect(0.0, Reading())
    assert found.domains is not None
    assert found.domains[0].cpu == pytest.approx(8.35)


def test_swapped_memory_is_read_only_where_swap_is_in_use() -> None:
    host = FakeHost()
    host.runs(captured.DOMAIN_STATISTICS)
    host.qemu()
    host.files |= {"/proc/swaps": captured.SWAPS_UNUSED, "/proc/10/status": captured.STATUS}
    found = domains.DomainStatistics(host.surroundings()).collect(0.0, Reading())
    assert found.domains is not None
    assert found.domains[0].swapped == 0
    assert "/proc/10/status" not in host.reads
    host.files["/proc/swaps"] = captured.SWAPS_IN_USE
    found = domains.DomainStatistics(host.surroundings()).collect(0.0, Reading())
    assert found.domains is not None
    assert found.domains[0].swapped == 2048


def test_a_domain_that_ends_while_it_is_asked_is_left_out() -> None:
    host = FakeHost()
    host.runs({})
    assert domains.DomainStatistics(host.surroundings()).collect(0.0, Reading()).domains == ()


def test_libvirts_error_is_translated() -> None:
    class Gone:
        def getAllDomainStats(self, wanted: int, flags: int) -> None:
            raise libvirt.libvirtError("gone")

    host = FakeHost()
    surroundings = Surroundings(host.options, host.link_options, Gone, host.read, host.listing)
    with pytest.raises(exception.LibvirtError, match="domain statistics"):
        domains.DomainStatistics(surroundings).collect(0.0, Reading())


# -- the host ---------------------------------------------------------------------------------


def test_only_cpus_that_guests_may_use_count() -> None:
    host = FakeHost()
    host.files["/proc/stat"] = captured.STAT
    collector = usage.Processors(host.surroundings())
    whole = collector.collect(0.0, Reading())
    part = collector.collect(0.0, Reading(allowed_cpus=frozenset({1})))
    assert (whole.cpus, part.cpus) == (2, 1)
    assert part.cpu_busy == pytest.approx((608801 + 2455 + 72417 + 8466 + 1170) / 100)


def test_cpus_that_are_not_there_are_told_as_such() -> None:
    host = FakeHost()
    host.files["/proc/stat"] = captured.STAT
    with pytest.raises(exception.CollectorError, match="/proc/stat"):
        usage.Processors(host.surroundings()).collect(0.0, Reading(allowed_cpus=frozenset({7})))


def test_memory_of_the_host() -> None:
    host = FakeHost()
    host.files |= {"/proc/meminfo": captured.MEMINFO, "/proc/vmstat": captured.VMSTAT}
    found = usage.Memory(host.surroundings()).collect(0.0, Reading())
    assert (found.memory_total, found.memory_available, found.swap_in) == (24684092, 22912612, 12)


def test_pressure_of_the_host() -> None:
    host = FakeHost()
    host.files["/proc/pressure/cpu"] = captured.PRESSURE_CPU
    host.files["/proc/pressure/memory"] = captured.PRESSURE_MEMORY
    found = usage.PressureStall(host.surroundings()).collect(0.0, Reading())
    assert (found.cpu_some, found.memory_some, found.memory_full) == (3775.156676, 1.5, 1.2)


def test_pressure_of_a_cgroup() -> None:
    host = FakeHost(pressure_directory="/sys/fs/cgroup/machine.slice")
    host.files["/sys/fs/cgroup/machine.slice/cpu.pressure"] = captured.PRESSURE_CPU
    found = usage.PressureStall(host.surroundings()).collect(
        0.0, Reading(allowed_cpus=frozenset({0}))
    )
    assert found.cpu_some == 3775.156676


def test_the_whole_hosts_pressure_says_nothing_of_a_part_of_its_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    host = FakeHost()
    host.files["/proc/pressure/cpu"] = captured.PRESSURE_CPU
    found = usage.PressureStall(host.surroundings()).collect(
        0.0, Reading(allowed_cpus=frozenset({1}))
    )
    assert found.cpu_some is None


def test_a_kernel_without_pressure_is_no_trouble() -> None:
    assert usage.PressureStall(FakeHost().surroundings()).collect(0.0, Reading()) == Reading()


# -- cgroups ----------------------------------------------------------------------------------


def test_cpus_configured_come_first() -> None:
    host = FakeHost(guest_cpus="2-3")
    host.files[cgroups.CPUSETS[0]] = "0-1"
    found = cgroups.ControlGroups(host.surroundings()).collect(0.0, Reading())
    assert found.allowed_cpus == {2, 3}


@pytest.mark.parametrize("path", cgroups.CPUSETS)
def test_the_cgroup_of_guests_tells_their_cpus(path: str) -> None:
    host = FakeHost()
    host.files[path] = "0-1\n"
    found = cgroups.ControlGroups(host.surroundings()).collect(0.0, Reading())
    assert found.allowed_cpus == {0, 1}


def test_without_such_a_cgroup_guests_have_the_cpus_of_the_agent() -> None:
    collector = cgroups.ControlGroups(FakeHost().surroundings(), own_cpus=lambda: {4})
    assert collector.collect(0.0, Reading()).allowed_cpus == {4}


def test_nonsense_configured_is_told() -> None:
    with pytest.raises(exception.CollectorError, match="guest_cpus = all"):
        cgroups.ControlGroups(FakeHost(guest_cpus="all").surroundings()).collect(0.0, Reading())


@pytest.mark.parametrize(
    ("cgroup", "directory", "quota", "statistics"),
    [
        (captured.CGROUP_V1, "/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", captured.CPU_STAT_V1),
        (captured.CGROUP_V2, "/sys/fs/cgroup", "cpu.max", captured.CPU_STAT_V2),
    ],
)
def test_time_a_quota_held_a_guest_back(
    cgroup: str, directory: str, quota: str, statistics: str
) -> None:
    path = f"{directory}/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/vcpu0"
    host = FakeHost()
    host.qemu(cgroup=cgroup)
    host.files |= {f"{path}/{quota}": "50000 100000", f"{path}/cpu.stat": statistics}
    host.files[f"{path}/cpu.cfs_quota_us"] = "50000"
    found = cgroups.ControlGroups(host.surroundings()).collect(0.0, Reading(pids={WEB: 10}))
    assert found.throttled == {WEB: pytest.approx(2.5)}


def test_guests_without_a_quota_cost_nothing_more() -> None:
    host = FakeHost()
    host.qemu(cgroup=captured.CGROUP_V2)
    collector = cgroups.ControlGroups(host.surroundings())
    collector.collect(0.0, Reading(pids={WEB: 10}))
    host.reads.clear()
    assert collector.collect(1.0, Reading(pids={WEB: 10})).throttled == {}
    assert host.reads == []


# -- the migration network --------------------------------------------------------------------


def linked(host: FakeHost, answer: str | None = captured.IP_ADDRESS) -> link.MigrationLink:
    host.files |= {"/sys/class/net/eth1/carrier": "1\n", "/sys/class/net/eth1/speed": "10000\n"}
    host.files |= {f"/sys/class/net/eth1/statistics/{name}": "0\n" for name in link.ERRORS}
    return link.MigrationLink(host.surroundings(), ask=lambda address: answer)


def test_the_speed_is_that_of_the_interface_with_the_address() -> None:
    found = linked(FakeHost()).collect(0.0, Reading())
    assert (found.bandwidth, found.trouble) == (1_250_000_000, ())


def test_a_bandwidth_that_is_configured_comes_first() -> None:
    assert linked(FakeHost(link_bandwidth=400)).collect(0.0, Reading()).bandwidth == 50_000_000


def test_an_interface_that_tells_no_speed_has_an_unknown_one() -> None:
    host = FakeHost()
    collector = linked(host)
    host.files["/sys/class/net/eth1/speed"] = "-1\n"
    assert collector.collect(0.0, Reading()).bandwidth == 0


def test_a_link_without_carrier_is_trouble() -> None:
    host = FakeHost()
    collector = linked(host)
    host.files["/sys/class/net/eth1/carrier"] = "0\n"
    assert collector.collect(0.0, Reading()).trouble == ("eth1 has no carrier",)


@pytest.mark.parametrize("answer", [None, "", "[]", "no JSON", '{"a": 1}', "[1]"])
def test_an_address_no_interface_has_is_trouble(answer: str | None) -> None:
    assert "192.0.2.7" in linked(FakeHost(), answer).collect(0.0, Reading()).trouble[0]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "migration.example"])
def test_where_no_one_address_is_configured_nothing_is_watched(address: str) -> None:
    host = FakeHost()
    host.link_options.link_address = address
    assert linked(host).collect(0.0, Reading()) == Reading(bandwidth=0)


def test_new_errors_are_told(caplog: pytest.LogCaptureFixture) -> None:
    host = FakeHost()
    collector = linked(host)
    collector.collect(0.0, Reading())
    host.files["/sys/class/net/eth1/statistics/rx_errors"] = "17\n"
    collector.collect(link.LOOK_AGAIN_S, Reading())
    assert "17 errors on eth1" in caplog.text


# -- readings ---------------------------------------------------------------------------------

WHOLE = Reading(cpus=2, cpu_busy=1.0, memory_total=10, memory_available=5, domains=())


def test_a_later_reading_covers_what_it_knows() -> None:
    one = Reading(cpus=1, swap_in=4, trouble=("a",))
    both = Reading(cpus=2, trouble=("b",)).over(one)
    assert (both.cpus, both.swap_in, both.trouble) == (2, 4, ("a", "b"))


@pytest.mark.parametrize("name", ["cpus", "memory_total", "domains"])
def test_a_host_of_which_too_little_is_known_is_not_calm_but_unknown(name: str) -> None:
    lacking = Reading(**{
        key: value
        for key in ("cpus", "cpu_busy", "memory_total", "memory_available", "domains")
        if key != name and (value := getattr(WHOLE, key)) is not None
    })  # fmt: skip
    with pytest.raises(exception.CollectorError, match=name):
        lacking.sample(0.0)


def test_throttled_time_reaches_the_sample_of_its_domain() -> None:
    found = Reading(
        domains=(DomainSample(WEB, 1, 0.0, 0.0, 1, 1),), throttled={WEB: 2.5, "other": 1.0}
    ).over(WHOLE)
    assert found.sample(0.0).domains[0].throttled == 2.5


def test_the_collectors_of_the_default_configuration_are_there(tmp_path: pathlib.Path) -> None:
    conf = options.read([])
    loaded = reading.load(conf.enlightened_agent.collectors, FakeHost().surroundings())
    assert [one.name for one in loaded] == conf.enlightened_agent.collectors


def test_a_collector_that_does_not_exist_is_named() -> None:
    with pytest.raises(exception.ConfigError, match=r"collectors.*astrology"):
        reading.load(["astrology"], FakeHost().surroundings())


def test_a_file_that_is_not_there_is_none(tmp_path: pathlib.Path) -> None:
    assert files.read(str(tmp_path / "none")) is None
    assert files.listing(str(tmp_path / "none")) == ()


def test_a_file_longer_than_a_read_is_whole(tmp_path: pathlib.Path) -> None:
    (tmp_path / "long").write_text("x" * 200_000)
    assert files.read(str(tmp_path / "long")) == "x" * 200_000
