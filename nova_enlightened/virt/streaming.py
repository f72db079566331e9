# SPDX-License-Identifier: Apache-2.0
"""Servers that start from a stored appliance, within Nova's libvirt driver.

`spawn` goes Nova's way but in three places: instead of a downloaded image the root disk is an
overlay on the player's NBD export, QEMU is started to wait for an incoming migration, and then
the host's agent has it filled. What is defined in libvirt is Nova's own domain, so whatever comes
after a stop is ordinary. Player and guest are the agent's to look after: it, and they, outlive a
restart of nova-compute.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import libvirt
import nova.conf
from nova import exception as nova_exception
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from oslo_concurrency import processutils
from oslo_log import log as logging

from nova_enlightened import exception
from nova_enlightened.virt import appliance, fitting, merged_xml, obstacles, streamed
from nova_enlightened.virt.streamed import StreamedDriver

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

EVENT: Final = "compute_stream_appliance"
LOOK_S: Final = 0.25
GIB: Final = 1 << 30
MIB: Final = 1 << 20
EXECUTING: Final = frozenset({"streaming", "pulling", "done"})
"""Phases of `host.appliances` in which the guest executes."""
_SAME_CPU: Final = frozenset({libvirt.VIR_CPU_COMPARE_IDENTICAL, libvirt.VIR_CPU_COMPARE_SUPERSET})
_NOT_TOLD: Final = frozenset(
    {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    }
)


@dataclass
class _Start:
    """One server on its way from an appliance to a guest that executes."""

    wanted: appliance.Wanted
    stored: fitting.Stored
    sockets: dict[str, str]
    disk: int
    monitor: str | None
    merged: merged_xml.Merged | None = None


class _WaitingGuest:
    """Nova's guest, which is not to resume what has nothing to execute yet."""

    def __init__(self, guest: Any) -> None:
        self._guest = guest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def resume(self) -> None:
        """The agent does, when enough is there."""


class StreamingDriver(StreamedDriver):
    """Mixed into Nova's ``LibvirtDriver``, before it."""

    _host: Any
    cpu_api: Any

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._starts: dict[str, _Start] = {}

    def spawn(self, context: Any, instance: Any, image_meta: Any, *args: Any, **kwargs: Any) -> Any:
        """As Nova's, from the stored appliance where the image names one.

        :raises nova.exception.ImageUnacceptable: no host can start it.
        :raises nova.exception.ComputeResourcesUnavailable: this host cannot; another may.
        """
        spawn = super().spawn  # type: ignore[misc]
        with _as_novas(instance):
            wanted = appliance.wanted(instance.system_metadata, instance.image_ref)
        if wanted is None or os.path.exists(streamed.root_disk(instance)):
            return spawn(context, instance, image_meta, *args, **kwargs)
        with _as_novas(instance):
            self._starts[instance.uuid] = self._prepared(instance, wanted, kwargs)
        appliance.keep(instance.system_metadata, wanted)
        instance.save()
        if CONF.enlightened_streaming.buffering == "paused":
            kwargs["power_on"] = False  # Nova would wait until it runs
        try:
            return spawn(context, instance, image_meta, *args, **kwargs)
        except Exception:
            self._end(instance, kept=False)
            raise
        finally:
            self._starts.pop(instance.uuid, None)

    def _prepared(self, instance: Any, wanted: appliance.Wanted, kwargs: dict[str, Any]) -> _Start:
        """All that can be refused is, before anything starts. Raises ``EnlightenedError``."""
        if not streamed.is_qcow2():
            raise exception.HostUnfit("[libvirt] images_type is not qcow2 on this host")
        if self._is_booted_from_volume(kwargs.get("block_device_info")):  # type: ignore[attr-defined]
            raise exception.ManifestError("an appliance cannot start from a volume")
        asked = wanted.asked(memory=True)
        answer = self._agent().prepare_appliance(CONF.host, instance.uuid, asked)
        try:
            stored = fitting.Stored.of(answer["manifest"])
            sockets = {str(k): str(v) for k, v in answer["sockets"].items()}
            flavor = _size(instance.flavor)
            has = fitting.size_of(stored)
            wrong = fitting.misfit(has, flavor)
            if wrong is not None:
                raise exception.ManifestError(f"the flavor does not fit the appliance: {wrong}")
            self._check_host(stored)
        except Exception:
            self._end(instance, kept=False)
            raise
        # An agent of a former release has none.
        return _Start(wanted, stored, sockets, max(has.disk, flavor.disk), answer.get("monitor"))

    def _check_host(self, stored: fitting.Stored) -> None:
        """:raises HostUnfit: what was captured cannot execute here."""
        connection = self._host.get_connection()
        why = fitting.older(connection.getVersion(), stored.qemu_version)
        why = why or fitting.unverifiable(stored.cpu)
        if why is not None:
            raise exception.HostUnfit(f"the appliance does not fit this host: {why}")
        kind, arch = CONF.libvirt.virt_type, fitting.arch_of(stored)
        try:
            connection.getDomainCapabilities(None, arch, stored.machine, kind, 0)
        except libvirt.libvirtError as error:
            raise exception.HostUnfit(
                f"the appliance does not fit this host: machine {stored.machine}: {error}"
            ) from error
        if not stored.cpu:
            return
        try:
            same = connection.compareHypervisorCPU(None, arch, stored.machine, kind, stored.cpu, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _NOT_TOLD:
                raise exception.HostUnfit(f"captured CPU: {error}") from error
            # It is compared once more, before the guest executes: QEMU's features, by libvirt.
            LOG.info("libvirt does not compare CPUs of %s: %s", kind, error)
            return
        if same not in _SAME_CPU:
            raise exception.HostUnfit("the appliance's CPU has features that this host's has not")

    def _create_and_inject_local_root(
        self, context: Any, instance: Any, disk_mapping: Any, booted_from_volume: bool,
        suffix: str, *args: Any, **kwargs: Any,
    ) -> bool:  # fmt: skip
        """As Nova's; nothing is fetched for a disk that is streamed."""
        start = self._starts.get(instance.uuid)
        if start is None or suffix:
            made: bool = super()._create_and_inject_local_root(  # type: ignore[misc]
                context, instance, disk_mapping, booted_from_volume, suffix, *args, **kwargs
            )
            return made
        ((target, socket),) = start.sockets.items()
        path, below = streamed.root_disk(instance), f"{streamed.NBD}/{target}?socket={socket}"
        processutils.execute(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", below, path,
            str(start.disk),
        )  # fmt: skip
        return True

    def _create_guest_with_network(
        self, context: Any, xml: str, instance: Any, network_info: Any, block_device_info: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Nova's; a guest that streams executes, or has failed, when this returns."""
        create = super()._create_guest_with_network  # type: ignore[misc]
        start = self._starts.get(instance.uuid)
        if start is None:
            self._serve_disk(instance)
            return create(context, xml, instance, network_info, block_device_info, **kwargs)
        kwargs["power_on"] = True
        guest = create(context, xml, instance, network_info, block_device_info, **kwargs)
        try:
            self._play(context, instance, start, network_info)
        except Exception:
            with suppress(libvirt.libvirtError):
                guest.poweroff()
            self._cleanup(  # type: ignore[attr-defined]
                context, instance, network_info, block_device_info, destroy_vifs=True,
                cleanup_instance_dir=kwargs.get("cleanup_instance_dir", False),
                cleanup_instance_disks=kwargs.get("cleanup_instance_disks", False),
            )  # fmt: skip
            raise
        return guest

    def _create_guest(
        self, context: Any, xml: str, instance: Any, power_on: bool = True, pause: bool = False,
        post_xml_callback: Any = None,
    ) -> Any:  # fmt: skip
        """As Nova's; one that streams waits for an incoming migration, and is Nova's when it
        has stopped.
        """
        create = super()._create_guest  # type: ignore[misc]
        start = self._starts.get(instance.uuid)
        if start is None:
            return create(context, xml, instance, power_on, pause, post_xml_callback)
        with _as_novas(instance):
            start.merged = merged_xml.merge(
                start.stored.domain_xml, xml, str(uuid.uuid4()), start.sockets, start.monitor
            )
            why = obstacles.find(start.merged.xml)
            if why is not None:
                raise exception.ManifestError(f"it cannot be streamed: {why}")
        for device in start.merged.dropped:
            LOG.info("At its first cold start it gets %s", device, instance=instance)
        guest = create(context, xml, instance, False, False, post_xml_callback)
        self.cpu_api.power_up_for_instance(instance)
        LOG.debug("Starting %s", start.merged.xml, instance=instance)
        self._host.get_connection().createXML(start.merged.xml, libvirt.VIR_DOMAIN_START_PAUSED)
        return _WaitingGuest(guest)

    def _play(self, context: Any, instance: Any, start: _Start, network_info: Any) -> None:
        identity = {"hostname": instance.hostname, "interfaces": list(_interfaces(network_info))}
        within = float(CONF.enlightened_streaming.start_timeout)
        with _as_novas(instance):
            self._agent().play_appliance(CONF.host, instance.uuid, identity, within)
        if CONF.enlightened_streaming.buffering == "build":
            self._follow_stream(context, instance)
            return
        threading.Thread(
            target=self._follow_paused_stream,
            args=(context, instance),
            name="appliance",
            daemon=True,
        ).start()

    def _follow_stream(self, context: Any, instance: Any) -> None:
        """Until it executes; the instance's progress tells how far it is.

        :raises nova.exception.ImageUnacceptable: it will not, and why.
        """
        pause = threading.Event()
        event = compute_utils.EventReporter(
            context, EVENT, CONF.host, instance.uuid, graceful_exit=True
        )
        with event, _as_novas(instance):
            while True:
                state = self._agent().appliance_state(CONF.host, instance.uuid)
                phase = state["phase"]
                if phase in EXECUTING:
                    break
                if state.get("error") or phase == "none":
                    raise exception.StreamingError(str(state.get("error") or "its player is gone"))
                self._tell_progress(instance, int(state.get("percent", 0)))
                pause.wait(LOOK_S)
        self._tell_progress(instance, 100)
        LOG.info("The appliance executes: %s", state.get("words", ""), instance=instance)

    def _follow_paused_stream(self, context: Any, instance: Any) -> None:
        """The same, for a server that is ACTIVE already."""
        try:
            self._follow_stream(context, instance)
        except Exception as error:
            LOG.warning("The appliance does not execute: %s", error, instance=instance)
            try:
                compute_utils.add_instance_fault_from_exc(context, instance, error)
                instance.vm_state = vm_states.ERROR
                instance.save()
            except Exception:
                LOG.exception("The fault is not noted", instance=instance)

    @staticmethod
    def _tell_progress(instance: Any, percent: int) -> None:
        if instance.progress != percent:
            instance.progress = percent
            # Whoever deletes the server meanwhile need not wait for it.
            instance.save(expected_task_state=[instance.task_state])


@contextmanager
def _as_novas(instance: Any) -> Iterator[None]:
    """Errors of this project as those of Nova that have the right consequences."""
    try:
        yield
    except (exception.HostUnfit, exception.AgentUnreachable) as error:
        raise nova_exception.ComputeResourcesUnavailable(reason=str(error)) from error
    except exception.EnlightenedError as error:
        raise nova_exception.ImageUnacceptable(
            image_id=instance.image_ref, reason=str(error)
        ) from error


def _size(flavor: Any) -> fitting.Size:
    return fitting.Size(
        flavor.vcpus, flavor.memory_mb * MIB, flavor.root_gb * GIB, flavor.ephemeral_gb * GIB,
        flavor.swap * MIB,
    )  # fmt: skip


def _interfaces(network_info: Any) -> Iterator[dict[str, Any]]:
    """What each interface of the clone is from now on, in the order Nova has them."""
    for vif in network_info or []:
        addresses, gateway = [], None
        for subnet in vif["network"]["subnets"]:
            prefix = subnet["cidr"].rpartition("/")[2]
            addresses += [f"{ip['address']}/{prefix}" for ip in subnet["ips"]]
            router = subnet.get("gateway")
            if router is not None and router["address"] and router["version"] == 4:
                gateway = router["address"]
        yield {"mac": vif["address"], "addresses": addresses, "gateway": gateway}
