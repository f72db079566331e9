# SPDX-License-Identifier: Apache-2.0
"""Relays of VMs that arrive: what another host's agent asks of this one's.

Of what the other side sends only what has to be common to both is taken: the migration, its
secret, the name in the other's certificate. Paths, addresses and certificates are this host's.
"""

import dataclasses
import logging
import pathlib
import re
import shutil
import uuid
from typing import Any, Final

from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.host import relays
from nova_enlightened.host.departure import Places
from nova_enlightened.host.relay_upkeep import RelayUpkeep
from nova_enlightened.host.spare_monitor import monitor_path
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

_SECRET: Final = re.compile(r"(?:[0-9a-f]{2}){16,64}")
_PEER: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")


def examined(asked: RelaySpec, conf: cfg.ConfigOpts) -> RelaySpec:
    """The specification of the relay that this host starts for one that is asked for.

    :raises ConfigError: it is not one that an agent of this project asks for, or the two hosts'
        configurations differ in what they have to share.
    """
    top = conf.enlightened.run_directory
    if asked.role != "destination":
        raise exception.ConfigError(f"another host asks for a relay that is {asked.role!r}")
    if not isinstance(asked.migration, str) or not _is_uuid(asked.migration):
        raise exception.ConfigError(f"migration {asked.migration!r} is no UUID")
    places = Places(top, asked.migration)
    if (asked.run_directory, asked.socket) != (places.directory("destination"), places.socket):
        raise exception.ConfigError(
            f"[enlightened] run_directory is {top!r} here and not on the host that asks, which "
            f"says {asked.socket!r}: libvirt needs one path for both"
        )
    if not isinstance(asked.secret, str) or not _SECRET.fullmatch(asked.secret):
        raise exception.ConfigError("the secret is not hexadecimal")
    if asked.monitor is not None and not _is_monitor(asked.monitor, top):
        raise exception.ConfigError(f"{asked.monitor!r} is no monitor's place on this host")
    if asked.tls is not None and not _PEER.fullmatch(str(asked.tls.peer_name)):
        raise exception.ConfigError(f"{asked.tls.peer_name!r} is no name of a host")
    ours = RelaySpec(
        role=asked.role,
        migration=asked.migration,
        run_directory=places.directory("destination"),
        socket=places.socket,
        link_host=str(conf.enlightened.link_address),
        link_port=0,
        secret=asked.secret,
        tls=asked.tls,
        monitor=asked.monitor,
    )
    return relays.for_this_host(ours, conf)


class Arrivals:
    """Starts relays for VMs that arrive.

    :param link_host: where other hosts reach them.
    """

    def __init__(self, conf: cfg.ConfigOpts, link_host: str, upkeep: RelayUpkeep) -> None:
        self._conf = conf
        self._link_host = link_host
        self._upkeep = upkeep

    def start(self, asked: str) -> dict[str, Any]:
        """Start one; where it listens.

        :param asked: ``RelaySpec`` as JSON.
        :raises ConfigError: as `examined`, or not a specification.
        :raises RelayError: it was asked for already, no port is free, or it does not start.
        """
        spec = examined(RelaySpec.from_json(asked), self._conf)
        directory = pathlib.Path(spec.run_directory)
        try:
            directory.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise exception.RelayError(
                f"migration {spec.migration} has, or had, a relay here already"
            ) from None
        except OSError as error:
            raise exception.RelayError(f"run directory: {error}") from error
        try:
            listener = relays.listen_in_range(self._conf)
            spec = dataclasses.replace(spec, link_port=listener.getsockname()[1])
            relay = relays.start(spec, listener, spare=self._upkeep.spare)
        except exception.EnlightenedError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._upkeep.adopt(relay)
        LOG.info("Relay of migration %s listens at port %d", spec.migration, spec.link_port)
        return {"link_host": self._link_host, "link_port": spec.link_port}


def _is_monitor(path: object, top: str) -> bool:
    instance = pathlib.Path(str(path)).name[:36]  # as long as a UUID is
    return _is_uuid(instance) and path == monitor_path(top, instance)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
