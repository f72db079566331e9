# SPDX-License-Identifier: Apache-2.0
"""What the cloud offers: its catalogue, a network, flavours and the guest's image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.image import GuestImage
from lab.network import CONTROL_ADDRESS
from lab.openstack.api import Api
from lab.openstack.configuration import PHYSICAL_NETWORK, REGION
from lab.openstack.places import ALL, GUESTS, PASSWORD, PORTS, endpoint
from lab.probe import PORT

IMAGE, NETWORK = "lab", "lab"
#: name: (vCPUs, MiB of memory)
FLAVORS = {"m1.lab": (1, 768), "m1.small": (1, 256)}

# guest/init.sh takes name and address, which are not here, from the firmware and its MAC.
_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=4 no_timer_check mitigations=off "
    "module_blacklist=kvm,kvm_amd,kvm_intel systemd.show_status=false "
    f"lab.collector={CONTROL_ADDRESS} lab.port={PORT} lab.workload=idle"
)
_PROPERTIES = {
    "hw_disk_bus": "virtio",
    "hw_vif_model": "virtio",
    "hw_machine_type": "pc",
    "hw_qemu_guest_agent": "yes",
    "hw_rng_model": "virtio",
    "hw_video_model": "none",
    "os_command_line": _COMMAND_LINE,
}


def catalogue(api: Api) -> None:
    """Make the services' account, and list every service. Identity has listed itself."""

    def fill(cloud: Any) -> None:
        _services_account(cloud)
        there = {service.type for service in cloud.identity.services()}
        for kind in PORTS:
            if kind in there:
                continue
            service = cloud.identity.create_service(name=kind, type=kind, enabled=True)
            for interface in ("public", "internal"):
                cloud.identity.create_endpoint(service_id=service.id, interface=interface,
                                               url=endpoint(kind), region_id=REGION)  # fmt: skip

    api.call(fill)
    api.close()  # it has read a catalogue without them


def _services_account(cloud: Any) -> None:
    """Some of neutron's calls are for nobody but services."""
    if cloud.identity.find_user("service") is not None:
        return
    project = cloud.identity.create_project(name="service", domain_id="default")
    user = cloud.identity.create_user(
        name="service", password=PASSWORD, domain_id="default", default_project_id=project.id
    )
    for name in ("admin", "service"):
        cloud.identity.assign_project_role_to_user(project, user, cloud.identity.find_role(name))


def network_and_flavors(api: Api) -> None:
    """What is missing of them."""

    def fill(cloud: Any) -> None:
        if cloud.network.find_network(NETWORK) is None:
            network = cloud.network.create_network(
                name=NETWORK, provider_network_type="flat", is_shared=True,
                provider_physical_network=PHYSICAL_NETWORK,
            )  # fmt: skip
            cloud.network.create_subnet(
                name=NETWORK, network_id=network.id, ip_version=4, cidr=ALL,
                allocation_pools=[{"start": GUESTS[0], "end": GUESTS[1]}],
                gateway_ip=None, is_dhcp_enabled=False,
            )  # fmt: skip
        there = {flavor.name for flavor in cloud.compute.flavors(details=False)}
        for name, (vcpus, memory) in FLAVORS.items():
            if name not in there:
                cloud.compute.create_flavor(name=name, vcpus=vcpus, ram=memory, disk=0)

    api.call(fill)


def image(api: Api, built: GuestImage) -> None:
    """The guest's image, of the first floor's files: uploaded where they have changed."""

    def fill(cloud: Any) -> None:
        name = f"kernel-{built.root.parent.name}"
        kernel = _uploaded(cloud, built.kernel, name, "aki", "aki", {})
        initrd = _uploaded(cloud, built.initrd, built.initrd.name, "ari", "ari", {})
        wanted = {**_PROPERTIES, "kernel_id": kernel, "ramdisk_id": initrd,
                  "lab_root": built.root.parent.name}  # fmt: skip
        _uploaded(cloud, built.root, IMAGE, "bare", "raw", wanted)

    api.call(fill)


def _is_of(found: Any, wanted: dict[str, str]) -> bool:
    """Whether an image has these properties, and all of its content: an upload may be cut short."""
    return found.status == "active" and all(
        found.properties.get(name, getattr(found, name, None)) == value
        for name, value in wanted.items()
    )


def _uploaded(
    cloud: Any, file: Path, name: str, container: str, disk: str, properties: dict[str, str]
) -> str:
    """The id of the image of that name, made anew where it is not what is wanted."""
    found = cloud.image.find_image(name)
    if found is not None and _is_of(found, properties):
        return str(found.id)
    if found is not None:
        cloud.image.delete_image(found)
    made = cloud.image.create_image(
        name=name, container_format=container, disk_format=disk, visibility="public",
        allow_duplicates=True, **properties,
    )  # fmt: skip
    with file.open("rb") as content:
        made.data = content
        made.upload(cloud.image)
    return str(made.id)
