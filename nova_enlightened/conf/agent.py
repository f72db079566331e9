# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[enlightened_agent]``, read by ``nova-enlightened-agent``."""

from typing import Final

from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.conf import bounds

GROUP: Final = "enlightened_agent"

_HOST = [
    cfg.StrOpt(
        "host",
        sample_default="<[DEFAULT] host of Nova, or the name of this host>",
        help="""
Name of this host's compute service, as ``openstack compute service list`` shows it.

The default is Nova's ``[DEFAULT] host`` where the agent is started with Nova's file too, and
otherwise the name the system has for itself, as for Nova. With the wrong one, nova-compute and the
remediator say that the "agent of" this host timed out.
""",
    ),
    cfg.StrOpt(
        "libvirt_uri",
        default="qemu:///system",
        help="""
The libvirt that runs the guests, as for Nova's ``[libvirt] connection_uri``.

While it cannot be reached the agent says so in its log, reports nothing, and tries again every
few seconds.
""",
    ),
    cfg.StrOpt(
        "link_name",
        sample_default="<the value of host>",
        help="""
Name of this host in the certificate of its relays, ``[enlightened] link_tls_certificate``.

The other side of each migration insists on it. "Hostname mismatch" in the log of a relay means
that the certificate carries another name. It has no effect where ``link_tls`` is off.
""",
    ),
    cfg.HostAddressOpt(
        "link_host",
        sample_default="<link_address, or this host's own address>",
        help="""
Address by which other hosts reach the relays of VMs that arrive here.

The default is ``[enlightened] link_address``, or, where relays listen on all addresses, the one
this host uses towards its default route, as for Nova's ``my_ip``. Set it where that is not in the
migration network: guests' memory crosses the network that this address is in.
""",
    ),
    cfg.IntOpt(
        "link_bandwidth",
        default=0,
        min=0,
        help="""
Mbit/s that migrations may use between hosts; 0 takes the speed of the network interface.

It only predicts how long a VM will take to leave. Set it where the interface is faster than the
network, or tells no speed: virtual interfaces claim 10 Gbit/s or nothing.
""",
    ),
    cfg.IntOpt(
        "keep_ended",
        default=86400,
        min=60,
        help="""
Seconds for which the directory of an ended migration is kept below ``[enlightened]
run_directory``, with its log and its trace of faults.

Each takes some megabytes of memory where that is a tmpfs. Raise it to look into migrations
longer after they ended; lower it if the file system fills.
""",
    ),
    cfg.BoolOpt(
        "provider_traits",
        default=True,
        help="""
Whether the traits ``CUSTOM_ENLIGHTENED_POST_COPY`` and ``CUSTOM_ENLIGHTENED_CONTENDED`` are kept
on this host's resource provider.

They make capability and contention visible in placement, where flavors can require or forbid
them. It needs the options that Nova has in its group ``[placement]``, best by starting the agent
with Nova's file too (``--config-file /etc/nova/nova.conf``); without ``[placement] auth_type`` no
trait is kept. Contention comes and goes, and each change is one request to placement.
""",
    ),
    cfg.HostAddressOpt(
        "metrics_address",
        default="127.0.0.1",
        help="""
Address on which Prometheus metrics are served, if ``metrics_port`` is set.

They name instances by UUID and need no password, so do not open them to a network of tenants.
""",
    ),
    cfg.PortOpt(
        "metrics_port",
        default=0,
        help="""
TCP port on which Prometheus metrics are served; 0 serves none.

Any free port does, for instance 9477. A port that is taken stops the agent from starting.
""",
    ),
]

_SAMPLING = [
    cfg.FloatOpt(
        "sample_interval",
        default=1.0,
        min=0.2,
        max=30.0,
        help="""
Seconds between two samples of the host and its guests.

Contention is noticed two or three samples after it began. Shorter notices sooner and costs more
CPU, well under 1 % of a core for 100 guests at 1 s; the hold times below do not follow by
themselves.
""",
    ),
    cfg.FloatOpt(
        "report_interval",
        default=2.0,
        min=0.2,
        max=60.0,
        help="""
Seconds between two reports to remediators and schedulers while the host is calm.

A host that is not calm reports each sample, and each change of level is told at once. Raise it to
spare the message bus of a large cloud; keep it well below ``[enlightened_scheduler]
report_max_age``, or calm hosts become unknown to the scheduler.
""",
    ),
    cfg.ListOpt(
        "collectors",
        default=["libvirt", "cgroups", "processors", "memory", "pressure", "link"],
        help="""
What is sampled: entry points of the namespace ``nova_enlightened.collectors``, in this order.

``libvirt`` and ``processors`` are needed for CPU contention, ``memory`` for memory contention;
``pressure`` (PSI) tells more of both where the kernel has it, ``cgroups`` tells CPUs and quotas
that guests are bound to (name it before those that count CPUs), ``link`` the state of the migration
network. A collector that fails is named in the log once, and the others go on.
""",
    ),
    cfg.StrOpt(
        "guest_cpus",
        default="",
        help="""
CPUs that guests run on, such as ``0-3,8``; empty finds them.

Found are those that the cgroup of libvirt's guests, or else the agent itself, may use. Set it to
the union of Nova's ``cpu_shared_set`` and ``cpu_dedicated_set`` where guests are kept to a part of
the host in another way, or the load of CPUs that no guest may use counts.
""",
    ),
    cfg.StrOpt(
        "pressure_directory",
        default="/proc/pressure",
        help="""
Directory with the kernel's pressure stall information of the host, or of a cgroup (v2).

``/sys/fs/cgroup/machine.slice`` watches guests alone where they are in it, ``/proc/pressure``
everything on the host. A kernel without PSI (``psi=0``) has neither; then contention is judged
without it. Stalls of CPUs are left out where guests may only use a part of the host's CPUs and
this is the whole host's.
""",
    ),
]


def _threshold(name: str, default: float, most: float, help: str) -> cfg.FloatOpt:
    return cfg.FloatOpt(name, default=default, min=0.0, max=most, help=help)


_THRESHOLDS = [
    _threshold(
        "cpu_warn",
        0.10,
        1.0,
        """
Share of the CPU time a guest wanted and did not get, from which the host warns (0 to 1).

At *warn* guests are armed, which costs them up to ``[enlightened] arm_cpu_limit`` of a vCPU and
nobody else anything. Lower it if guests are not armed yet when they have to leave.
""",
    ),
    _threshold(
        "cpu_act",
        0.25,
        1.0,
        """
Share of the CPU time a guest wanted and did not get, from which one should leave (0 to 1).

A quarter not given means work takes a third longer. Lower relieves hosts that are less contended
and moves more VMs; raise it if VMs are moved and nobody had complained.
""",
    ),
    _threshold(
        "cpu_least",
        0.1,
        1024.0,
        """
CPUs that a guest has to lose before its own share counts; all guests together always count.

It keeps a guest that wants next to nothing, and waits for half of it, from being called
contended. Raise it if small, idle guests lead to warnings.
""",
    ),
    _threshold(
        "cpu_stall",
        0.05,
        1.0,
        """
Share of time in which, by PSI, some task waited for a CPU, below which waiting only warns.

It guards against counters of waiting that go up when nobody waits. 0 switches it off. It has no
effect where the kernel has no PSI.
""",
    ),
    _threshold(
        "memory_some_warn",
        0.05,
        1.0,
        """
Share of time in which, by PSI, some task waited for memory, from which the host warns (0 to 1).

Reading back what was pushed out of the page cache counts too, so a host that copies large files
can reach it. Raise it if such hosts warn.
""",
    ),
    _threshold(
        "memory_some_act",
        0.20,
        1.0,
        """
Share of time in which, by PSI, some task waited for memory, from which a guest should leave.

It has effect only while memory is short, see ``memory_ample``. Lower it if guests swap for long
before one of them leaves.
""",
    ),
    _threshold(
        "memory_full_warn",
        0.02,
        1.0,
        """
Share of time in which, by PSI, everything waited for memory, from which the host warns (0 to 1).

Nothing on the host does any work in that time. So the bound is lower than that of *some*.
""",
    ),
    _threshold(
        "memory_full_act",
        0.10,
        1.0,
        """
Share of time in which, by PSI, everything waited for memory, from which a guest should leave.

It has effect only while memory is short, see ``memory_ample``. A tenth is a guest that stands
still for 100 ms of every second.
""",
    ),
    _threshold(
        "swap_in_warn",
        200.0,
        1e9,
        """
Pages a second swapped in from which the host warns.

Pages are 4 KiB; swapping in is what guests wait for, swapping out is not. Raise it on hosts with
fast swap, such as zram.
""",
    ),
    _threshold(
        "swap_in_act",
        2000.0,
        1e9,
        """
Pages a second swapped in from which a guest should leave.

It has effect only while memory is short, see ``memory_ample``. On a disk, 2000 pages a second
are all it can give.
""",
    ),
    _threshold(
        "memory_scarce",
        0.05,
        1.0,
        """
Share of memory available below which the host warns, whatever else is seen (0 to 1).

It only ever warns: memory that is in use and harms nobody is memory well used. Lower it on hosts
that are filled on purpose.
""",
    ),
    _threshold(
        "memory_ample",
        0.20,
        1.0,
        """
Share of memory available above which waiting for memory and swapping only warn (0 to 1).

A guest that leaves frees memory, and where there is enough that would end nothing. Raise it where
guests swap although memory is free, because of cgroup limits or huge pages.
""",
    ),
    _threshold(
        "hold_warn",
        1.0,
        3600.0,
        """
Seconds for which the bound of *warn* has to be exceeded before the host warns.

It keeps a spike shorter than that from arming guests. Arming costs little, so keep it short.
""",
    ),
    _threshold(
        "hold_act",
        2.0,
        3600.0,
        """
Seconds for which the bound of *act* has to be exceeded before a guest should leave.

A spike that is shorter passes by itself. Longer moves fewer VMs for a load that is over when they
arrive, and makes all of them wait longer.
""",
    ),
    _threshold(
        "hold_lower",
        5.0,
        3600.0,
        """
Seconds for which a bound has to be undercut before a level is taken back.

Each change of level is a change of traits and a reason for schedulers to decide differently.
Raise it if a host's level goes up and down.
""",
    ),
]

ALL_OPTS = [*_HOST, *_SAMPLING, *_THRESHOLDS]


def _group() -> cfg.OptGroup:
    """A new group for each configuration object: objects that get the same one share values."""
    return cfg.OptGroup(
        name=GROUP,
        title="Agent of a compute host",
        help="""
What ``nova-enlightened-agent`` samples on a compute host, when it calls the host contended, and
how other services reach it. It reads the group ``[enlightened]`` too, and from Nova's files
``[DEFAULT] transport_url`` and ``[placement]``.
""",
    )


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group and its options on `conf`."""
    conf.register_group(_group())
    conf.register_opts(ALL_OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The group with its options, as ``oslo-config-generator`` wants them."""
    return [(_group(), ALL_OPTS)]


def check(conf: cfg.ConfigOpts) -> None:
    """Refuse bounds that cross. :raises ConfigError: naming both options."""
    pairs = [
        (f"{figure}_warn", f"{figure}_act")
        for figure in ("cpu", "memory_some", "memory_full", "swap_in")
    ]
    bounds.check(conf, GROUP, (("sample_interval", "report_interval"), *pairs))
    for low, _ in pairs:
        if not conf[GROUP][low]:
            raise exception.ConfigError(f"[{GROUP}] {low} = {conf[GROUP][low]} would warn always")
