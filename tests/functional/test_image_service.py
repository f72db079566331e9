# SPDX-License-Identifier: Apache-2.0
"""Registering images with openstacksdk itself, against a Glance of a few lines on loopback."""

from collections.abc import Iterator

import pytest

from nova_enlightened.appliance.manifest import Manifest, Object
from nova_enlightened.exception import ImageServiceError
from nova_enlightened.host.image_service import STUB, ImageService
from tests.functional import fake_glance
from tests.functional.fake_glance import Glance

XML = """<domain type='kvm'><memory unit='KiB'>2097152</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader type='pflash'>/code.fd</loader></os>
<devices><disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
<controller type='scsi' index='0' model='virtio-scsi'/>
<interface type='ethernet'><model type='virtio'/></interface>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<video><model type='virtio'/></video><rng model='virtio'/></devices></domain>"""


def manifest(name: str) -> Manifest:
    some = Object("0" * 64, 10)
    return Manifest(
        name=name,
        created="2030-01-02T03:04:05+00:00",
        machine="pc-q35-7.2",
        qemu_version="7.2.22",
        cpu="<cpu/>",
        domain_xml=XML,
        ram_blocks=(("pc.ram", 2 << 30),),
        page_sizes=(4096,),
        ram_section_id=3,
        ram_setup_flags=4,
        configuration=b"\7",
        vm_description="{}",
        device_state=some,
        base_index=some,
        disks=(("vda", (10 << 30) + 1),),
        packs=(),
    )


@pytest.fixture
def glance() -> Iterator[Glance]:
    with fake_glance.glance() as server:
        yield server


@pytest.fixture
def service(glance: Glance) -> Iterator[ImageService]:
    connection = fake_glance.connection(glance)
    yield ImageService(connection)
    connection.close()


def test_an_image_of_an_appliance_is_a_stub_with_properties(
    glance: Glance, service: ImageService
) -> None:
    one = manifest("one")
    image = service.register("web", one, "https://store/", traces=True)
    assert glance.contents == {image.id: STUB}
    found = glance.images[image.id]
    expected = {
        "name": "web",
        "disk_format": "raw",
        "container_format": "bare",
        "min_ram": 2048,
        "min_disk": 11,
        "enlightened_appliance_store": "https://store/",
        "enlightened_appliance_manifest": one.digest,
        "enlightened_appliance_traces": "yes",
        "trait:CUSTOM_ENLIGHTENED_STREAMING": "required",
        "hw_machine_type": "pc-q35-7.2",
        "hw_architecture": "x86_64",
        "hw_disk_bus": "virtio",
        "hw_cdrom_bus": "sata",
        "hw_scsi_model": "virtio-scsi",
        "hw_vif_model": "virtio",
        "hw_video_model": "virtio",
        "hw_rng_model": "virtio",
        "hw_firmware_type": "uefi",
        "hw_qemu_guest_agent": "yes",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_registered_again_it_is_the_same_image(glance: Glance, service: ImageService) -> None:
    first = service.register("web", manifest("one"), "https://store/")
    again = service.register("web", manifest("one"), "https://elsewhere/", plan="a" * 64)
    assert again.id == first.id
    assert len(glance.images) == 1
    found = glance.images[first.id]
    assert found["enlightened_appliance_store"] == "https://elsewhere/"
    assert found["enlightened_appliance_plan"] == "a" * 64
    # What somebody else, or openstacksdk, keeps in an image stays.
    assert "owner_specified.openstack.object" in found
    assert found["hw_vif_model"] == "virtio"


def test_an_image_whose_upload_broke_off_is_not_used(glance: Glance, service: ImageService) -> None:
    first = service.register("web", manifest("one"), "https://store/")
    glance.images[first.id]["status"] = "queued"
    assert service.register("web", manifest("one"), "https://store/").id != first.id


def test_a_plan_is_set_on_images_of_its_appliance_only(
    glance: Glance, service: ImageService
) -> None:
    ours = [service.register(name, manifest("one"), "https://store/") for name in ("a", "b")]
    other = service.register("c", manifest("two"), "https://store/")
    glance.images["stock"] = {"id": "stock", "name": "debian", "status": "active"}
    updated = service.set_plan(manifest("one").digest, "b" * 64)
    assert [image.id for image in updated] == [image.id for image in ours]
    assert all(image.plan == "b" * 64 for image in updated)
    assert "enlightened_appliance_plan" not in glance.images[other.id]
    assert "enlightened_appliance_plan" not in glance.images["stock"]


def test_what_glance_refuses_is_told(glance: Glance, service: ImageService) -> None:
    glance.refuses = True
    with pytest.raises(ImageServiceError, match=r"web.*403"):
        service.register("web", manifest("one"), "https://store/")
