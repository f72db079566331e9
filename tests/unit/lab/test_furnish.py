# SPDX-License-Identifier: Apache-2.0
"""What a warm start of the lab's cloud makes of the guest's image that it finds."""

import dataclasses
import pathlib
from typing import Any

import pytest

from lab.openstack import furnish


@dataclasses.dataclass
class Image:
    id: str
    name: str
    status: str
    properties: dict[str, str]
    data: Any = None

    def upload(self, service: "Service") -> None:
        self.status = "active"
        service.uploads.append(self.id)


class Service:
    """Glance: a name is not unique, an id is."""

    def __init__(self) -> None:
        self.image = self
        self.there: list[Image] = []
        self.uploads: list[str] = []
        self.made = 0

    def find_image(self, name: str) -> Image | None:
        return next((one for one in self.there if one.name == name), None)

    def create_image(self, name: str, **described: Any) -> Image:
        self.made += 1
        properties = {
            key: value for key, value in described.items()
            if key not in ("container_format", "disk_format", "visibility", "allow_duplicates")
        }  # fmt: skip
        self.there.append(Image(f"image-{self.made}", name, "queued", properties))
        return self.there[-1]

    def delete_image(self, image: Image) -> None:
        self.there.remove(image)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "root"
    made.write_bytes(b"guest")
    return made


def uploaded(service: Service, file: pathlib.Path, ramdisk: str) -> str:
    return furnish._uploaded(service, file, "guest", "bare", "raw", {"ramdisk_id": ramdisk})


def test_the_same_image_is_not_uploaded_again(service: Service, file: pathlib.Path) -> None:
    assert uploaded(service, file, "one") == uploaded(service, file, "one")
    assert service.uploads == ["image-1"]


def test_an_image_with_another_ramdisk_is_made_anew(service: Service, file: pathlib.Path) -> None:
    uploaded(service, file, "one")
    assert uploaded(service, file, "another") == "image-2"
    assert [one.properties for one in service.there] == [{"ramdisk_id": "another"}]


def test_an_image_whose_upload_was_cut_short_is_made_anew(
    service: Service, file: pathlib.Path
) -> None:
    service.create_image("guest", ramdisk_id="one")
    assert uploaded(service, file, "one") == "image-2"
    assert [one.status for one in service.there] == ["active"]
