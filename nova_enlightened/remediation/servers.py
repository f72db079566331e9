# SPDX-License-Identifier: Apache-2.0
"""What Nova's API says of servers and their migrations, and the one request that moves one.

openstacksdk's and keystoneauth's errors are translated here, and nowhere else.
"""

import contextlib
import dataclasses
import datetime
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import openstack
import openstack.config
import openstack.connection
from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1 import loading
from openstack import exceptions as sdk_errors
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.conf import remediation as options
from nova_enlightened.contention.victims import USUAL_PRIORITY, VmFacts, barred

EVICTION_EXTRA_SPEC: Final = "enlightened:eviction"
PRIORITY_EXTRA_SPEC: Final = "enlightened:priority"
EVICTION_METADATA: Final = ("enlightened:eviction", "enlightened.eviction")
NEVER: Final = "never"
LIVE_MIGRATION: Final = "live-migration"
MICROVERSION: Final = "2.80"
"""Asked for always, not negotiated: an older one leaves out the flavor's extra specs, and with them
that a server is never to be evicted. Nova has it since Train.
"""

# 408 and 429 ask to come again; the others of 4xx would answer the same again.
_COME_AGAIN: Final = frozenset({408, 429})


@dataclasses.dataclass(frozen=True)
class Server:
    """A server as Nova has it.

    :param host: its compute service; empty while it has none.
    :param state, task: Nova's ``vm_state``, and ``task_state`` or an empty string.
    :param opted_out: who says that it is never to be evicted; empty where nobody does.
    :param priority: 0 to 100: the higher, the rather others go.
    """

    uuid: str
    name: str
    host: str
    state: str
    task: str = ""
    locked: bool = False
    opted_out: str = ""
    priority: int = USUAL_PRIORITY
    project: str = ""

    @property
    def obstacle(self) -> str:
        """Why it cannot be moved now, in words; empty where nothing stands in the way."""
        return barred(self.facts(), 0.0, 0.0) or ""

    def facts(self) -> VmFacts:
        """As the choice of a victim wants them."""
        return VmFacts(
            uuid=self.uuid,
            priority=self.priority,
            opted_out=self.opted_out or None,
            locked=self.locked,
            state=self.state,
            task=self.task or None,
        )


@dataclasses.dataclass(frozen=True)
class Migration:
    """A live migration as Nova has it; ids grow with time.

    :param status: Nova's word, see ``eviction_states.MIGRATION_STATUS``.
    :param updated: when the status last changed, seconds since the epoch by Nova's clock; None
        where it does not say.
    """

    id: int
    server: str
    source: str
    destination: str
    status: str
    updated: float | None = None


class Nova(Protocol):
    """What is asked of Nova. Every method raises ``NovaUnreachable`` or ``NovaRefused``."""

    def servers_on(self, host: str) -> list[Server]:
        """The servers of all projects on a compute host."""

    def server(self, uuid: str) -> Server:
        """One server. :raises ServerGone: there is none."""

    def migrations_of(self, uuid: str) -> list[Migration]:
        """Live migrations of a server, by id."""

    def migrations_since(self, since: str) -> list[Migration]:
        """Live migrations of all servers that changed since then (ISO 8601, UTC), by id."""

    def live_migrate(self, uuid: str) -> None:
        """Request a live migration to wherever the scheduler chooses.

        :raises NovaUnreachable: it may have been accepted nevertheless.
        """


class NovaApi:
    """Nova through openstacksdk; safe for threads.

    :param conf: with the group ``[enlightened_remediation]``. Nothing is asked before the first
        call, so a cloud that is down does not keep the service from starting.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, connect: Callable[[cfg.ConfigOpts], Any] | None = None
    ) -> None:
        self._conf = conf
        self._connect = connect or connection
        self._connecting = threading.Lock()
        self._connection: Any = None

    def servers_on(self, host: str) -> list[Server]:
        """See :class:`Nova`."""
        with _translated(f"servers on {host}"):
            found = self._compute().servers(details=True, all_projects=True, compute_host=host)
            return [server_of(one) for one in found]

    def server(self, uuid: str) -> Server:
        """See :class:`Nova`."""
        with _translated(f"server {uuid}"):
            return server_of(self._compute().get_server(uuid))

    def find(self, name: str) -> Server:
        """A server of any project by its name or UUID.

        :raises ServerGone: there is none.
        :raises NovaRefused: several have this name.
        """
        with _translated(f"server {name}"):
            compute = self._compute()
            found = compute.find_server(name, ignore_missing=False, all_projects=True)
            # What was found by its name lacks what only a request for it alone tells.
            return server_of(compute.get_server(found.id))

    def migrations_of(self, uuid: str) -> list[Migration]:
        """See :class:`Nova`."""
        return self._migrations(server_id=uuid)

    def migrations_since(self, since: str) -> list[Migration]:
        """See :class:`Nova`."""
        return self._migrations(changes_since=since)

    def live_migrate(self, uuid: str) -> None:
        """See :class:`Nova`."""
        with _translated(f"live migration of {uuid}"):
            self._compute().live_migrate_server(uuid, host=None, block_migration="auto")

    def close(self) -> None:
        """Close connections that are kept open."""
        with self._connecting:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _migrations(self, **query: str) -> list[Migration]:
        with _translated("migrations"):
            found = self._compute().migrations(migration_type=LIVE_MIGRATION, **query)
            return sorted(map(migration_of, found), key=lambda migration: migration.id)

    def _compute(self) -> Any:
        with self._connecting:
            if self._connection is None:
                self._connection = self._connect(self._conf)
            # Made at the first use, which asks the cloud: not by several threads at once.
            return self._connection.compute


def check(conf: cfg.ConfigOpts) -> None:
    """:raises ConfigError: the configuration does not say how the API is reached."""
    ours = conf[options.GROUP]
    if not (ours.os_cloud or ours.auth_section or ours.auth_type):
        raise exception.ConfigError(f"[{options.GROUP}] has neither os_cloud nor auth_type")
    try:
        if ours.os_cloud:
            openstack.config.OpenStackConfig().get_one(cloud=ours.os_cloud)
        else:
            loading.load_auth_from_conf_options(conf, options.GROUP)
    except (sdk_errors.SDKException, keystone_errors.ClientException, cfg.Error) as error:
        raise exception.ConfigError(f"[{options.GROUP}] {error}") from error


def connection(conf: cfg.ConfigOpts) -> Any:
    """A connection to the cloud of the configuration."""
    ours = conf[options.GROUP]
    region = ours.region_name or None
    if ours.os_cloud:
        return openstack.connect(
            cloud=ours.os_cloud,
            region_name=region,
            api_timeout=ours.timeout,
            compute_default_microversion=MICROVERSION,
        )
    auth = loading.load_auth_from_conf_options(conf, options.GROUP)
    session = loading.load_session_from_conf_options(conf, options.GROUP, auth=auth)
    return openstack.connection.Connection(
        session=session,
        region_name=region,
        interface=ours.interface,
        compute_default_microversion=MICROVERSION,
    )


def server_of(found: Any) -> Server:
    """A server from openstacksdk's."""
    specs = _mapping(found.flavor.extra_specs if found.flavor is not None else None)
    metadata = _mapping(found.metadata)
    opted_out = ""
    if specs.get(EVICTION_EXTRA_SPEC) == NEVER:
        opted_out = "by its flavor"
    elif NEVER in map(metadata.get, EVICTION_METADATA):
        opted_out = "by its metadata"
    return Server(
        uuid=found.id,
        name=found.name or "",
        host=found.compute_host or "",
        state=found.vm_state or "",
        task=found.task_state or "",
        locked=bool(found.is_locked),
        opted_out=opted_out,
        priority=_priority(specs.get(PRIORITY_EXTRA_SPEC)),
        project=found.project_id or "",
    )


def migration_of(found: Any) -> Migration:
    """A migration from openstacksdk's."""
    return Migration(
        id=int(found.id),
        server=found.server_id or "",
        source=found.source_compute or "",
        destination=found.dest_compute or "",
        status=found.status or "",
        updated=moment(found.updated_at or found.created_at),
    )


def moment(written: Any) -> float | None:
    """A moment as Nova's API writes it, ISO 8601 in UTC, mostly without saying so."""
    try:
        found = datetime.datetime.fromisoformat(written)
    except (TypeError, ValueError):
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _priority(value: Any) -> int:
    """What the flavor says; the API's validator holds it within bounds where it is installed."""
    try:
        return max(0, min(100, int(value)))
    except (TypeError, ValueError):
        return USUAL_PRIORITY


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except sdk_errors.NotFoundException as error:
        raise exception.ServerGone(f"{what}: {error}") from error
    except sdk_errors.DuplicateResource as error:
        raise exception.NovaRefused(f"{what}: {error}; name it by its UUID") from error
    except sdk_errors.HttpException as error:
        status = error.status_code or 0
        if 400 <= status < 500 and status not in _COME_AGAIN:
            raise exception.NovaRefused(f"{what}: {error}") from error
        raise exception.NovaUnreachable(f"{what}: {error}") from error
    except ValueError as error:  # openstacksdk: this cloud is too old for what is asked
        raise exception.NovaRefused(f"{what}: {error}") from error
    # Discovery, the catalogue and authentication may be down with the rest of the cloud.
    except (sdk_errors.SDKException, keystone_errors.ClientException, OSError) as error:
        raise exception.NovaUnreachable(f"{what}: {error}") from error
