# SPDX-License-Identifier: Apache-2.0
"""What subcommands reach the outside by: configuration, bus, Nova. Tests put others in place."""

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import openstack
import oslo_messaging
from keystoneauth1 import exceptions as keystone_errors
from openstack import exceptions as sdk_errors
from oslo_config import cfg

from nova_enlightened import conf as options
from nova_enlightened import exception, rpc
from nova_enlightened.conf import remediation
from nova_enlightened.contention.report import HostReport
from nova_enlightened.contention.report_cache import ReportCache
from nova_enlightened.remediation import servers

NO_REPORTS: Final = (
    "No host reports. See that [DEFAULT] transport_url is the one of the compute hosts "
    "(--config-file), that nova-enlightened-agent runs there, and that clocks agree"
)


@dataclasses.dataclass
class Context:
    """Made without I/O.

    :param hosts: client of agents.
    :param nova: Nova's API.
    :param listen: hears reports for so many seconds, or until all the named hosts are heard.
    :param connect: makes a connection of openstacksdk's; None: the cloud of the configuration.
    """

    conf: cfg.ConfigOpts
    hosts: rpc.HostAPI
    nova: servers.NovaApi
    listen: Callable[[float, Collection[str]], list[HostReport]]
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    connect: Callable[[], Any] | None = None


def read(files: Collection[str]) -> cfg.ConfigOpts:
    """The configuration of this project and what is needed of Nova's.

    :raises ConfigError, oslo_config.cfg.Error: see ``conf.read``.
    """
    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    remediation.register_auth_opts(conf)
    register_nova_opts(conf)
    conf([], project="nova_enlightened", default_config_files=list(files) or None)
    options.check(conf)
    return conf


def register_nova_opts(conf: cfg.ConfigOpts) -> None:
    """Those of Nova's options that the check looks at, without Nova."""
    conf.register_opts([cfg.StrOpt("compute_driver", default=""), cfg.StrOpt("host")])
    conf.register_opts(
        [cfg.BoolOpt("live_migration_permit_post_copy", default=False)], group="libvirt"
    )


def make(conf: cfg.ConfigOpts) -> Context:
    """The real thing.

    :raises ConfigError: the configuration names no bus that there could be.
    """
    try:
        transport = rpc.get_transport(conf)
    except oslo_messaging.MessagingException as error:
        raise exception.ConfigError(f"[DEFAULT] transport_url: {error}") from error

    def listen(wait: float, hosts: Collection[str]) -> list[HostReport]:
        return hear(transport, wait, hosts)

    return Context(conf, rpc.HostAPI(transport), servers.NovaApi(conf, connect), listen)


def connect(conf: cfg.ConfigOpts) -> Any:
    """To the cloud that the group ``[enlightened_remediation]`` names, else to that of the
    environment (``OS_CLOUD``, ``OS_AUTH_URL``...).

    :raises ConfigError: neither names any.
    """
    ours = conf[remediation.GROUP]
    if ours.os_cloud or ours.auth_type or ours.auth_section:
        return servers.connection(conf)
    try:
        return openstack.connect(compute_default_microversion=servers.MICROVERSION)
    except (sdk_errors.SDKException, keystone_errors.ClientException) as error:
        raise exception.ConfigError(
            f"how to reach Nova's API is not known: {error}. Set OS_CLOUD, source an openrc file, "
            f"or name a configuration with the group [{remediation.GROUP}] (--config-file)"
        ) from error


def hear(transport: Any, wait: float, hosts: Collection[str]) -> list[HostReport]:
    """Reports of the hosts that send any within `wait` seconds; sooner if all of `hosts` did."""
    missing, all_heard, lock = set(hosts), threading.Event(), threading.Lock()

    def heard(report: HostReport) -> None:
        with lock:
            missing.discard(report.host)
            if hosts and not missing:
                all_heard.set()

    cache = ReportCache(max_age=wait + 60.0)
    listener = rpc.ReportListener(transport, f"manage-{socket.gethostname()}", cache, heard=heard)
    listener.start()
    try:
        all_heard.wait(wait)
        return [one for one in listener.current() if not hosts or one.host in hosts]
    finally:
        listener.stop()


def describe(context: Context, host: str) -> dict[str, Any] | None:
    """What a host's agent says of itself, None where none answers."""
    try:
        return context.hosts.describe(host)
    except exception.EnlightenedError:
        return None
