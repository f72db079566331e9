# SPDX-License-Identifier: Apache-2.0
"""Servers of this host that stream from stored appliances: what nova-compute asks for.

Players outlive the agent. What it knows of them it finds in their run directories.
"""

import dataclasses
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.appliance.manifest import SHA256, TARGET, Manifest
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.conf import streaming as options
from nova_enlightened.host import players
from nova_enlightened.host.appliance_run import Order, Phase, Run
from nova_enlightened.host.players import RunningPlayer
from nova_enlightened.host.spare_monitor import SpareMonitor, monitor_path
from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.player_appliance import read_manifest
from nova_enlightened.transfer.player_spec import PlayerSpec
from nova_enlightened.transfer.stores import open_store

LOG = logging.getLogger(__name__)

DIRECTORY: Final = "appliance-"
"""Before the server's UUID, below ``[enlightened] run_directory``."""
MIB: Final = 1 << 20
BITS: Final = 8
SOCKET_MODE: Final = 0o660
MOST: Final = 1000
LONGEST_SECONDS: Final = 86400.0


class Appliances:
    """Safe for threads; made without I/O.

    :param domain: finds a domain, running or not, by its UUID; raises ``LibvirtError``.
    :param qemu_group: the group that QEMU runs as, or None where that is not known.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        domain: Callable[[str], Any],
        qemu_group: Callable[[], int | None],
    ) -> None:
        self._conf = conf
        self._options = conf[options.GROUP]
        self._top = conf.enlightened.run_directory
        self._domain = domain
        self._qemu_group = qemu_group
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    @property
    def offered(self) -> bool:
        """Whether this host streams at all."""
        return bool(self._options.stores)

    def states(self) -> dict[str, str]:
        """The phase of each server, by UUID."""
        with self._lock:
            return {uuid: run.phase.value for uuid, run in self._runs.items()}

    # -- what is asked ------------------------------------------------------------------------

    def prepare(self, instance: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """See ``rpc.HostAPI.prepare_appliance``.

        :raises AgentRefused: a store that is not this host's to fetch from, or nonsense.
        :raises StoreError, ApplianceError: the manifest cannot be had, or is not one.
        :raises PlayerError: the player does not start.
        """
        store, digest, plan = self._checked(wanted)
        manifest = self._manifest(store, digest)
        self._check_disks(manifest)
        with self._lock:
            run = self._runs.get(instance)
            if run is not None and (wanted.get("memory") or run.phase is Phase.FAILED):
                run.end()
                run = None
            if run is None or not run.player.alive:
                run = self._started(instance, store, digest, plan, manifest, wanted)
        return {
            "manifest": told(manifest),
            "sockets": dict(run.player.spec.nbd_sockets),
            "monitor": monitor_path(self._top, instance),
        }

    def play(self, instance: str, identity: Mapping[str, Any], within: float) -> None:
        """See ``rpc.HostAPI.play_appliance``. :raises PlayerGone: it was not prepared."""
        with self._lock:
            run = self._runs.get(instance)
        if run is None or not run.order.memory:
            raise exception.PlayerGone(f"nothing was prepared for server {instance}")
        until = time.time() + min(max(within, 0.0), LONGEST_SECONDS)
        run.play(dataclasses.replace(run.order, identity=dict(identity), until=until))

    def state(self, instance: str) -> dict[str, Any]:
        """See ``rpc.HostAPI.appliance_state``."""
        with self._lock:
            run = self._runs.get(instance)
        if run is None:
            return {"phase": Phase.NONE.value, "percent": 0.0, "error": None, "words": ""}
        return run.state()

    def end(self, instance: str, kept: bool) -> None:
        """See ``rpc.HostAPI.end_appliance``."""
        with self._lock:
            run = self._runs.get(instance)
            if run is None or (kept and run.phase is not Phase.DONE):
                return  # a disk that is not whole goes on being served, and fetched
            del self._runs[instance]
        run.end()
        LOG.info("Server %s streams no more", instance)

    # -- by itself ----------------------------------------------------------------------------

    def look(self) -> None:
        """Take up servers whose player runs, or was lost, and nobody looks after."""
        if not self.offered:
            return
        for path in sorted(pathlib.Path(self._top).glob(f"{DIRECTORY}*/spec.json")):
            instance = path.parent.name.removeprefix(DIRECTORY)
            with self._lock:
                if instance in self._runs:
                    continue
                try:
                    player = players.found(str(path.parent))
                    order = Order.load(str(path.parent))
                except exception.PlayerError as error:
                    LOG.debug("%s: %s", path.parent, error)
                    continue
                LOG.info("Server %s streams: looked after again", instance)
                self._look_after(player, order)

    def close(self) -> None:
        """End the threads; players go on by themselves."""
        with self._lock:
            for run in self._runs.values():
                run.let_go()
            self._runs.clear()

    # -- how ----------------------------------------------------------------------------------

    def _checked(self, wanted: Mapping[str, Any]) -> tuple[str, str, str | None]:
        store, digest, plan = (wanted.get(name) for name in ("store", "manifest", "plan"))
        if not isinstance(store, str) or not options.is_allowed(self._conf, store):
            raise exception.AgentRefused(
                f"the store {str(store)[:200]!r} is not one of this host's [{options.GROUP}] stores"
            )
        for one in (digest, plan) if plan is not None else (digest,):
            if not isinstance(one, str) or not SHA256.fullmatch(one):
                raise exception.AgentRefused(f"{str(one)[:80]!r} is no SHA-256")
        return store, str(digest), plan

    def _manifest(self, store: str, digest: str) -> Manifest:
        opened = open_store(store)
        cache = ChunkCache(self._options.cache_directory, self._options.cache_limit * MIB)
        cache.open()
        try:
            return read_manifest(opened, digest, cache)
        finally:
            cache.close()
            opened.close()

    @staticmethod
    def _check_disks(manifest: Manifest) -> None:
        for target, _ in manifest.disks:
            if not TARGET.fullmatch(target):
                raise exception.ManifestError(f"{target!r} is no disk")

    def _started(
        self,
        instance: str,
        store: str,
        digest: str,
        plan: str | None,
        manifest: Manifest,
        wanted: Mapping[str, Any],
    ) -> Run:
        if len(self._runs) >= MOST:
            raise exception.PlayerError(f"{MOST} servers stream on this host already")
        memory, ours = bool(wanted.get("memory")), self._options
        base = os.path.join(self._top, instance)
        trace = None
        if wanted.get("traced") and ours.trace_directory:
            trace = os.path.join(ours.trace_directory, digest, f"{instance}.trace")
        spec = PlayerSpec(
            run_directory=os.path.join(self._top, DIRECTORY + instance),
            store=store,
            manifest=digest,
            plan=plan,
            qemu_socket=f"{base}-memory.sock" if memory else None,
            nbd_sockets={target: f"{base}-{target}.nbd" for target, _ in manifest.disks},
            cache_directory=ours.cache_directory if ours.cache_limit else None,
            cache_limit=ours.cache_limit * MIB,
            tail=Tail.FAULTED if ours.fetch_all else Tail.NONE,
            record=bool(trace and memory and plan is None and ours.fetch_all and ours.learn_time),
            connections=ours.connections,
            bandwidth_limit=ours.bandwidth_limit * 1e6 / BITS or None,
        )
        if spec.qemu_socket is not None:
            pathlib.Path(spec.qemu_socket).unlink(missing_ok=True)
        player = players.start(spec)
        self._admit(player)
        order = Order(instance, memory, trace=trace)
        try:
            order.save(spec.run_directory)
        except OSError as error:
            player.stop()
            raise exception.PlayerError(f"{spec.run_directory}: {error}") from error
        return self._look_after(player, order)

    def _look_after(self, player: RunningPlayer, order: Order) -> Run:
        """With the lock held."""
        instance = order.instance
        former = self._runs.pop(instance, None)
        if former is not None:
            former.let_go()
        monitor = self._monitor(instance) if player.spec.qemu_socket is not None else None
        run = Run(
            player,
            order,
            lambda: self._domain(instance),
            self._admit,
            self._options.clone_timeout,
            monitor,
            self._options.learn_time,
        )
        self._runs[instance] = run
        run.start()
        return run

    def _monitor(self, instance: str) -> SpareMonitor | None:
        """Where the server's QEMU connects its second monitor; None where that cannot be."""
        path = monitor_path(self._top, instance)
        monitor = SpareMonitor(pathlib.Path(path))
        try:
            monitor.open()
            self._admit_to((path,))
        except (OSError, exception.PlayerError) as error:
            LOG.warning("Server %s has no second monitor: %s", instance, error)
            monitor.close()
            return None
        return monitor

    def _admit(self, player: RunningPlayer) -> None:
        """Let QEMU's group, and nobody else, use the sockets of the disks."""
        self._admit_to(player.spec.nbd_sockets.values())

    def _admit_to(self, paths: Iterable[str]) -> None:
        """Whoever is in that group, or root, may give a file of its own to it.

        :raises PlayerError: it may not.
        """
        group = self._qemu_group()
        if group is None:
            return
        for path in paths:
            try:
                os.chown(path, -1, group)
                os.chmod(path, SOCKET_MODE)
            except OSError as error:
                raise exception.PlayerError(f"{path}: {error}") from error


def told(manifest: Manifest) -> dict[str, Any]:
    """What of a manifest nova-compute needs, as ``rpc.HostAPI.prepare_appliance`` has it."""
    return {
        "machine": manifest.machine,
        "qemu_version": manifest.qemu_version,
        "cpu": manifest.cpu,
        "domain_xml": manifest.domain_xml,
        "disks": [list(disk) for disk in manifest.disks],
    }
