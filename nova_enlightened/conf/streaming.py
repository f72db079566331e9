# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[enlightened_streaming]``."""

from typing import Final

from oslo_config import cfg

from nova_enlightened import exception

GROUP: Final = "enlightened_streaming"
MIB: Final = 1 << 20

_STORES = [
    cfg.ListOpt(
        "stores",
        default=[],
        help="""
Where appliances may come from: beginnings of URLs, such as ``https://appliances.example.org/``.

An image names the store of its appliance, and users make images, so a host fetches only from what
is listed here. Each ends with a slash. Empty, the default, means that this host streams nothing,
does not have the trait ``CUSTOM_ENLIGHTENED_STREAMING``, and refuses such images. "The store ... is
not one of" in the fault of a server means that its image names another one. Read by the host's
agent.
""",
    ),
    cfg.IntOpt(
        "connections",
        default=24,
        min=1,
        max=256,
        help="""
Requests to the store that one server may have under way at the same time.

Round trips overlap: the farther the store, the more it takes to fill the link. Raise it where a
distant store is not fetched from at the speed of the link; lower it where the store throttles.
""",
    ),
    cfg.IntOpt(
        "bandwidth_limit",
        default=0,
        min=0,
        help="""
Mbit/s that one server may fetch with; 0 does not limit it.

What a guest waits for counts too, so a limit makes guests slower. Set it only where the link to
the store has more important users.
""",
    ),
    cfg.BoolOpt(
        "fetch_all",
        default=True,
        help="""
Whether what a server has not asked for is fetched as well, after the plan.

A server whose memory and disk are all here needs the store no more, can move, and is an ordinary
one from then on. Without it, that never comes about by itself: the server depends on the store
and on its player until it is stopped and its disk is fetched.
""",
    ),
]

_CACHE = [
    cfg.StrOpt(
        "cache_directory",
        default="/var/lib/nova-enlightened/chunks",
        help="""
Directory of what was fetched, shared by all servers of this host and kept when they are deleted.

The second server of an appliance starts from it without the store. It needs a file system with
sparse files; memory (a tmpfs) is too dear for it. A full disk, or a directory that cannot be
written, is logged and streaming goes on without.
""",
    ),
    cfg.IntOpt(
        "cache_limit",
        default=51200,
        min=0,
        help="""
MiB that the cache may take; what was used least recently is dropped. 0 keeps nothing.

An appliance takes about its compressed size. Make it hold those that start often, all at once.
""",
    ),
]

_START = [
    cfg.StrOpt(
        "buffering",
        default="build",
        choices=[
            ("build", "it stays in BUILD, its progress rises, and it is ACTIVE once it executes"),
            ("paused", "it becomes ACTIVE with power state Paused, and runs when it can"),
        ],
        help="""
How a server is seen while what it needs first is fetched.

That lasts seconds. ``paused`` returns from ``openstack server create --wait`` sooner and hides
failures of the store from it: they put the server into ERROR later. Read by the compute service.
""",
    ),
    cfg.IntOpt(
        "start_timeout",
        default=600,
        min=10,
        max=86400,
        help="""
Seconds in which a server has to execute after its domain was started.

After that it is given up, with what was missing in its fault. Raise it for slow links. Read by
the compute service.
""",
    ),
    cfg.IntOpt(
        "clone_timeout",
        default=60,
        min=0,
        max=3600,
        help="""
Seconds in which the agent in the guest has to have taken the new server's name and addresses.

Until it has, the server's interfaces have no link, so that no two servers use one address. An
image without the agent, or a guest that is slower than this, gets its link then, and the address
that it had when it was published: Nova's log warns of it. 0 never cuts the link and tells the
guest nothing. Read by the host's agent.
""",
    ),
]

_TRACES = [
    cfg.StrOpt(
        "trace_directory",
        default="",
        help="""
Directory that the trace of each run is kept in: which pages and blocks were touched first, when.

``nova-enlightened-manage appliance learn`` makes prefetch plans of them. A trace tells what kind of
work a server did, not with which data, and it is its owner's: only servers whose image says
``enlightened_appliance_traces = yes`` leave one. Empty keeps none.
""",
    ),
    cfg.IntOpt(
        "learn_time",
        default=60,
        min=0,
        max=3600,
        help="""
Seconds for which a server is a learning run: its appliance has no plan, and its trace is kept.

So long it is given nothing that it did not ask for, so that its trace shows all it touched, being
told who it is included; afterwards everything is fetched as ever. It is slower meanwhile, and the
servers that come once a plan was learned are the faster. 0 has no learning runs: a trace then shows
only what was not fetched sooner than it was touched. Without ``fetch_all`` there are none. Read by
the host's agent.
""",
    ),
]

ALL_OPTS = [*_STORES, *_CACHE, *_START, *_TRACES]


def _group() -> cfg.OptGroup:
    """A new group for each configuration object: objects that get the same one share values."""
    return cfg.OptGroup(
        name=GROUP,
        title="Streaming of appliances",
        help="""
Starts servers from stored memory, devices and disk that are fetched while they run. Read by the
agent of each compute host and by its compute service.
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
    """Refuse what only a start would find out. :raises ConfigError: naming the option."""
    for store in conf[GROUP].stores:
        if "://" not in store or not store.endswith("/"):
            raise exception.ConfigError(
                f"[{GROUP}] stores = {store}: not a URL that ends with a slash"
            )
    for name in ("cache_directory", "trace_directory"):
        path = conf[GROUP][name]
        if path and not path.startswith("/"):
            raise exception.ConfigError(f"[{GROUP}] {name} = {path} is not absolute")


def is_allowed(conf: cfg.ConfigOpts, store: str) -> bool:
    """Whether appliances may come from this URL.

    A URL with ``..``, a query or credentials is none that a store has, and could lead elsewhere.
    """
    wanted = store if store.endswith("/") else f"{store}/"
    if any(part in wanted for part in ("/../", "/./", "?", "#", "\\", "%", "@")):
        return False
    return any(wanted.startswith(allowed) for allowed in conf[GROUP].stores)
