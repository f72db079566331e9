# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[enlightened]``."""

from oslo_config import cfg

from nova_enlightened.conf import bounds

GROUP = "enlightened"

_KNOWLEDGE = [
    cfg.ListOpt(
        "hint_sources",
        default=["guest-agent", "qemu-guest-agent"],
        help="""
Where knowledge of a guest's memory is looked for, in this order; the first source that answers
is used. Names are entry points of the namespace ``nova_enlightened.hint_sources``.

``guest-agent`` reports page classes, recently used pages and processes. ``qemu-guest-agent``
reads page classes only, through an agent many guests have anyway, and takes longer. A guest
that answers to none of them moves in QEMU's own order. Set this to ``none`` to trust no guest
at all; hints can only reorder pages, so the price of a hostile one is time.
""",
    ),
    cfg.FloatOpt(
        "arm_interval",
        default=1.0,
        min=0.1,
        max=60.0,
        help="""
Seconds between two looks of an armed guest agent at which pages are in use.

Shorter tells hot pages from warm ones better and costs the guest more CPU and more page faults.
Raise it when guests complain of overhead while a host is contended.
""",
    ),
    cfg.IntOpt(
        "arm_max",
        default=300,
        min=1,
        max=86400,
        help="""
Seconds after which an armed guest agent stops sampling by itself, if nobody arms it again.

It bounds the guest's cost when the host that armed it is gone. Raise it when guests have
often stopped sampling by the time they have to leave.
""",
    ),
    cfg.FloatOpt(
        "arm_cpu_limit",
        default=0.05,
        min=0.001,
        max=1.0,
        help="""
Share of one vCPU that an armed guest agent may use: 0.05 is 5 %.

An agent at its limit samples less often than ``arm_interval`` says. Raise it for guests with
much memory whose hot pages are found too slowly.
""",
    ),
]

_PLAN = [
    cfg.StrOpt(
        "ordering_policy",
        default="heat",
        help="""
How known pages are put in order: an entry point of the namespace
``nova_enlightened.ordering_policies``.

``heat`` sends first what is most likely to be touched soonest, byte for byte. ``process`` goes
by page class and process and needs no samples of use. ``stock`` leaves the order to QEMU: the
relay then only carries the migration. Compare policies on your own recorded migrations with
``nova-enlightened-simulate`` before changing this.
""",
    ),
    cfg.IntOpt(
        "injection_window_floor",
        default=256,
        min=4,
        max=65536,
        help="""
KiB of pages that the relay requests from QEMU ahead of what it has read, at least.

QEMU serves requests in the order they come, so a page the guest waits for waits until QEMU has
written this much, a fraction of a millisecond. Too small, and QEMU runs out of requests and
sends pages nobody asked for, which the relay has to read and hold.
""",
    ),
    cfg.IntOpt(
        "injection_window_cap",
        default=1024,
        min=4,
        max=65536,
        help="""
KiB of pages that the relay requests from QEMU ahead of what it has read, at most.

Between the two bounds the relay adapts. Raise the cap on fast links if many unrequested pages
are counted while the plan is not finished; lower it if the latency of faults grows while pages
are injected.
""",
    ),
]

_LINK = [
    cfg.HostAddressOpt(
        "link_address",
        default="0.0.0.0",
        help="""
Address that the relay of an arriving VM listens on.

Set it to this host's address in the migration network, so that the memory of guests crosses no
other network.
""",
    ),
    cfg.PortOpt(
        "link_port_min",
        default=49216,
        min=1024,
        help="""
First TCP port that relays of arriving VMs may listen on.

One port is in use for each VM that arrives at the same time. The default range begins after the
one libvirt uses for migrations. Firewalls between compute hosts have to let the range pass.
""",
    ),
    cfg.PortOpt(
        "link_port_max",
        default=49279,
        min=1024,
        help="""
Last TCP port that relays of arriving VMs may listen on.

The range bounds how many VMs can arrive at once. Widen it if the log of a destination says that
no port is free.
""",
    ),
    cfg.StrOpt(
        "link_tls",
        default="required",
        choices=[
            ("required", "mutual TLS 1.3; a peer without a certificate of our CA is refused"),
            ("off", "plaintext"),
        ],
        help="""
Whether guest memory is encrypted between relays.

``off`` saves CPU and is for networks that are trusted or encrypted below. There is no middle:
a relay never falls back to plaintext by itself, and a source and a destination that disagree
refuse each other before a byte of the guest has crossed, and the VM stays where it is.
""",
    ),
    cfg.StrOpt(
        "link_tls_ca",
        default="/etc/nova_enlightened/tls/ca.pem",
        help="""
PEM file with the certificate authority that signed the relays' certificates.

Whoever holds a certificate of it can pose as a compute host, so use an authority of its own.
""",
    ),
    cfg.StrOpt(
        "link_tls_certificate",
        default="/etc/nova_enlightened/tls/cert.pem",
        help="""
PEM file with this host's certificate. It has to name the host as peers address it; "certificate
verify failed: Hostname mismatch" in a relay's log means that it does not.
""",
    ),
    cfg.StrOpt(
        "link_tls_key",
        default="/etc/nova_enlightened/tls/key.pem",
        help="""
PEM file with the key of ``link_tls_certificate``, without a passphrase. The user that relays run
as must be able to read it, and nobody else should.
""",
    ),
]

_HOST = [
    cfg.StrOpt(
        "run_directory",
        default="/run/nova-enlightened",
        help="""
Directory for the sockets, state and fault traces of migrations, one directory each.

It has to be the same path on all hosts (libvirt names one socket path for both ends), short
(a unix socket's path holds 107 bytes) and on a local file system. QEMU must be able to enter
it: "Permission denied" from QEMU when a migration starts means that its user, or an AppArmor or
SELinux profile, keeps it out.
""",
    ),
]

_DECISION = [
    cfg.StrOpt(
        "default_policy",
        default="stock",
        choices=[
            ("stock", "only migrations that were ordered as urgent; others as Nova does them"),
            ("ordered", "every live migration that can and may"),
        ],
        help="""
Which live migrations leave by post-copy, switched at once, in the order of their guest.

``stock`` waits for an urgent order, from the remediator or from ``nova-enlightened-manage evict``.
``ordered`` also takes those that operators start with ``openstack server migrate
--live-migration``: they end sooner, and while one is under way the VM depends on both hosts, as
in every post-copy. It is read on the source host. Flavors and images that forbid post-copy are
left alone by both.
""",
    ),
    cfg.StrOpt(
        "post_copy",
        default="allowed",
        choices=[
            ("allowed", "unless flavor, image or owner forbid it"),
            ("forbidden", "unless flavor, image or owner allow it, and none of them forbids it"),
        ],
        help="""
Whether a VM whose flavor (``enlightened:post_copy``), image (``enlightened_post_copy``) and
metadata (``enlightened:post_copy``) do not say so may leave by post-copy.

A VM in post-copy is lost if either host, or the network between them, fails for good. Nova's
``[libvirt] live_migration_permit_post_copy`` has to be on as well, on both hosts. Read by
the compute service on the source host.
""",
    ),
]

_GUEST = [
    cfg.BoolOpt(
        "guest_channel",
        default=True,
        help="""
Whether new domains get the virtio-serial port that the agent in the guest talks through.

A VM that runs already gets it at its next hard reboot. An image that must not have it says
``enlightened_guest_channel = no``. Without the port the guest's order is known only through
``qemu-guest-agent``. Read by the compute service.
""",
    ),
]

ALL_OPTS = [*_DECISION, *_GUEST, *_KNOWLEDGE, *_PLAN, *_LINK, *_HOST]


def _group() -> cfg.OptGroup:
    """A new group for each configuration object: objects that get the same one share values."""
    return cfg.OptGroup(
        name=GROUP,
        title="Ordered post-copy migration",
        help="""
Moves a running VM through post-copy live migration with its pages in the order its guest needs
them. Read by the compute service, the agent of the host and ``nova-enlightened-evict``; source
and destination hosts should agree on the ``link_`` options.
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
    pairs = (
        ("injection_window_floor", "injection_window_cap"),
        ("link_port_min", "link_port_max"),
    )
    bounds.check(conf, GROUP, pairs)
