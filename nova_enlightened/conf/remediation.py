# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[enlightened_remediation]``."""

from keystoneauth1 import loading
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.conf import bounds

GROUP = "enlightened_remediation"
API_TIMEOUT_S = 20

_MODE = [
    cfg.StrOpt(
        "mode",
        default="audit",
        choices=[
            ("audit", "say what would be done, in the log and as notifications, and do nothing"),
            ("auto", "arm guests and evict servers"),
        ],
        help="""
What the remediator does about a contended host.

Run ``audit`` first, and compare what it proposes (``eviction.proposed``) with what you would
have done. In ``audit`` it never calls anything that changes a guest or a server.
""",
    ),
    cfg.StrOpt(
        "state_path",
        default="/var/lib/nova-enlightened",
        help="""
Directory of the journal of evictions, which has to survive a restart of the service.

Without ``backend_url`` the lock that lets one instance lead is in it too, so two instances on
one host cannot both act. Use a local file system: locks of network file systems are not trusted.
""",
    ),
    cfg.StrOpt(
        "backend_url",
        default="",
        secret=True,
        help="""
Coordination backend by which several instances agree on who leads, as tooz takes it:
``etcd3+http://host:2379``, ``zookeeper://host:2181``, ``redis://host:6379`` and others.

Empty means that there is one instance, or several on one host: the first to lock a file in
``state_path`` leads. Two instances on two hosts that both log "Leading" lack a common backend.
""",
    ),
]

_LIMITS = [
    cfg.IntOpt(
        "max_evictions_per_host",
        default=1,
        min=1,
        max=100,
        help="""
Evictions under way from one host at the same time, at most.

Two at once share the host's link, so each takes longer, and the relief of the first is not yet
seen when the second is chosen. Raise it where hosts hold hundreds of small servers and one that
leaves is never enough.
""",
    ),
    cfg.IntOpt(
        "max_evictions",
        default=8,
        min=1,
        max=10000,
        help="""
Evictions under way in the whole cloud at the same time, at most.

It keeps a surge that meets many hosts at once from becoming a storm of migrations. Raise it when
"evictions running, of 8" is logged of hosts for long while the migration network and Nova's
services are idle.
""",
    ),
    cfg.IntOpt(
        "max_evictions_into_host",
        default=2,
        min=1,
        max=100,
        help="""
Evictions under way towards one host at the same time, at most, as far as it is known where they
go: Nova's scheduler decides that.

More let one roomy host take what several contended ones send, and share its link among them.
Raise it in clouds with few hosts when "no host can take any" is logged while one has room.
""",
    ),
    cfg.FloatOpt(
        "vm_cooldown",
        default=600.0,
        min=0.0,
        max=86400.0,
        help="""
Seconds for which a server that has been evicted, or whose eviction failed, is left alone.

It is what keeps a server from going to and fro. Too short, and a server whose own load is the
cause follows its load around the cloud; too long, and a host that it made contended again has to
send away others. Migrations that somebody else made count too, where Nova tells of them.
""",
    ),
    cfg.FloatOpt(
        "host_cooldown",
        default=20.0,
        min=0.0,
        max=86400.0,
        help="""
Seconds for which no server is evicted from a host after one has left, or failed to.

The host needs that long to show whether it is relieved. Too short, and a second server leaves
for a contention that the first has ended already.
""",
    ),
]

_CHOICE = [
    cfg.StrOpt(
        "victim_policy",
        default="relief-per-cost",
        help="""
Which server leaves a contended host: an entry point of the namespace
``nova_enlightened.victim_policies``.

``relief-per-cost`` takes the one whose leaving gives most for each second that it is slowed down.
``priority-first`` goes by the flavors' ``enlightened:priority`` alone, ``smallest`` by memory:
the shortest moves, perhaps several of them.
""",
    ),
    cfg.FloatOpt(
        "return_after",
        default=1800.0,
        min=0.0,
        max=604800.0,
        help="""
Seconds before a server is expected to be able to go back to a host that it was evicted from.

A server whose only way leads there stays where it is. Raise it where servers go to and fro at
intervals longer than ``vm_cooldown``.
""",
    ),
    cfg.IntOpt(
        "armed_per_host",
        default=4,
        min=0,
        max=1000,
        help="""
Guests that are armed on a host where contention is near: the likeliest to leave.

An armed guest spends up to ``[enlightened] arm_cpu_limit`` of a vCPU on sampling, on a host that
is short of just that. 0 arms none; evicted servers then take longer to recover.
""",
    ),
]

_TIMES = [
    cfg.FloatOpt(
        "report_max_age",
        default=10.0,
        min=1.0,
        max=600.0,
        help="""
Seconds after which a host's last report says nothing any more.

Hosts report every second. Nothing is decided about a host whose report is older: it may be
down. Raise it where evictions end with "no report of its old host" though that is up; first see
that clocks agree, as a report's age is counted from when it was made.
""",
    ),
    cfg.FloatOpt(
        "order_ttl",
        default=60.0,
        min=5.0,
        max=600.0,
        help="""
Seconds for which a host's agent keeps an order that a server shall leave urgently.

It has to cover Nova's way from the API to the compute service, scheduling included. Too short,
and nova-compute logs ``not_wanted`` of servers that were to leave urgently, as no order stands any
more; too long, and an order that nothing followed lets a later migration of that server be urgent.
""",
    ),
    cfg.FloatOpt(
        "follow_interval",
        default=1.0,
        min=0.1,
        max=60.0,
        help="""
Seconds between two looks at a migration under way, one API request each.

Shorter makes the recorded times more exact and costs Nova's API more.
""",
    ),
    cfg.FloatOpt(
        "appear_timeout",
        default=30.0,
        min=2.0,
        max=600.0,
        help="""
Seconds in which Nova has to show a live migration, from when it took the request or, where it did
not answer, from when it was not waited for any more.

After that the eviction is given up. It is not requested again: the request may still lie in a
queue, and the server would move twice. Raise it when "never appeared" is logged of migrations
that did take place later.
""",
    ),
    cfg.FloatOpt(
        "eviction_timeout",
        default=900.0,
        min=10.0,
        max=86400.0,
        help="""
Seconds after which a migration under way is not followed any more and its eviction given up.

Nova goes on with the migration; its own timeouts hold. This only bounds how long one eviction
may count against ``max_evictions``.
""",
    ),
    cfg.FloatOpt(
        "relief_timeout",
        default=30.0,
        min=1.0,
        max=600.0,
        help="""
Seconds after a server has left in which its host's reports are watched for relief.

The journal then holds what was predicted beside what was measured. Too short, and averages over
the seconds before the server left hide the relief.
""",
    ),
    cfg.FloatOpt(
        "arm_renew",
        default=60.0,
        min=5.0,
        max=3600.0,
        help="""
Seconds after which the guests of a host that is still about to be contended are armed again.

Keep it well below ``[enlightened] arm_max`` of the compute hosts: guests stop sampling when that
runs out, and ``nova-enlightened-manage armed`` shows none on a host that still warns.
""",
    ),
    cfg.FloatOpt(
        "servers_max_age",
        default=5.0,
        min=0.0,
        max=600.0,
        help="""
Seconds for which what the API says of the servers of a host is used again.

Longer costs the API less. What matters is checked anew right before a server is moved, so an old
answer can only lead to an eviction that is then dropped.
""",
    ),
]

_KEPT = [
    cfg.IntOpt(
        "history_limit",
        default=10000,
        min=100,
        max=10_000_000,
        help="""
Evictions that the journal keeps, the newest ones. Each takes about a kilobyte.

Those under way are never dropped. Lower it where ``state_path`` is small.
""",
    ),
    cfg.HostAddressOpt(
        "metrics_address",
        default="127.0.0.1",
        help="""
Address on which Prometheus metrics are served, if ``metrics_port`` is set.

They need no password, so do not open them to a network of tenants.
""",
    ),
    cfg.PortOpt(
        "metrics_port",
        default=0,
        help="""
TCP port on which Prometheus metrics are served; 0 serves none.

Any free port does, for instance 9478. A port that is taken stops the service from starting.
""",
    ),
]

_CLOUD = [
    cfg.StrOpt(
        "os_cloud",
        default="",
        help="""
Name of the cloud in ``clouds.yaml`` through which Nova's API is reached.

Empty means: by the ``auth_type``, ``auth_url``, ``username``... of this group, as other services
of OpenStack have them. Either way the user needs to see the servers of all projects with their
hosts, and to live-migrate them: the role ``admin`` in default policies.
""",
    ),
    cfg.StrOpt(
        "region_name",
        default="",
        help="""
Region whose Nova is meant. Empty means the only one, or the first that the catalogue lists.

One remediator serves one region; hosts of another report on another message bus anyway.
""",
    ),
    cfg.StrOpt(
        "interface",
        default="internal",
        choices=["internal", "public", "admin"],
        help="""
Which of Nova's endpoints in the catalogue is used. ``os_cloud`` brings its own.

Services usually use the internal one. Where the catalogue has none of this kind, every question to
Nova fails, and the log says that the endpoint is not found.
""",
    ),
]

ALL_OPTS = [*_MODE, *_LIMITS, *_CHOICE, *_TIMES, *_KEPT, *_CLOUD]


def _group() -> cfg.OptGroup:
    """A new group for each configuration object: objects that get the same one share values."""
    return cfg.OptGroup(
        name=GROUP,
        title="Remediation of contended hosts",
        help="""
Read by ``nova-enlightened-remediator``, which watches the reports of all hosts, arms guests where
contention is near and evicts a server where it is there. The usual options of keystoneauth
(``auth_type``, ``auth_url``, ``username``, ``cafile``, ``timeout``...) are read from this group
too.
""",
    )


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group and its options on `conf`."""
    conf.register_group(_group())
    conf.register_opts(ALL_OPTS, group=GROUP)


def register_auth_opts(conf: cfg.ConfigOpts) -> None:
    """Register keystoneauth's options in the group, for the service that calls Nova's API."""
    loading.register_auth_conf_options(conf, GROUP)
    loading.register_session_conf_options(conf, GROUP)
    # Without a limit a request to an API that hangs would never come back.
    conf.set_default("timeout", API_TIMEOUT_S, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """The group with its options, as ``oslo-config-generator`` wants them. Those of keystoneauth
    are documented elsewhere, and everybody has them.
    """
    return [(_group(), ALL_OPTS)]


def check(conf: cfg.ConfigOpts) -> None:
    """Refuse values that contradict each other. :raises ConfigError: naming both options."""
    pairs = (
        ("max_evictions_per_host", "max_evictions"),
        ("appear_timeout", "eviction_timeout"),
        ("follow_interval", "appear_timeout"),
    )
    bounds.check(conf, GROUP, pairs)
    path = conf[GROUP].state_path
    if not path.startswith("/"):
        raise exception.ConfigError(f"[{GROUP}] state_path = {path} is not absolute")
