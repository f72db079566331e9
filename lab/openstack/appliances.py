# SPDX-License-Identifier: Apache-2.0
"""Servers of the cloud published as appliances, by the command that operators have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.openstack.configuration import account
from lab.openstack.furnish import IMAGE
from lab.openstack.servers import Server
from lab.processes import run

if TYPE_CHECKING:
    from lab.openstack.cloud import Cloud

#: What a cold start needs of the laboratory's image, whose disk has no boot loader.
_BOOT = ("kernel_id", "ramdisk_id", "os_command_line")
_PUBLISH_S, _LEARN_S = 300.0, 120.0


@dataclass(frozen=True)
class Published:
    """An appliance and its image. ``told``: what the command printed."""

    manifest: str
    image: str
    told: dict[str, Any]


def manage(cloud: Cloud, host: str, *words: str, seconds: float = _PUBLISH_S) -> Any:
    """What ``nova-enlightened-manage appliance`` prints, run on a host as the administrator.

    Raises CommandFailed.
    """
    etc = cloud.places.configuration
    files = (etc / f"{host}.conf", etc / f"{host}-enlightened.conf")
    command = [cloud.places.program("nova-enlightened-manage")]
    for file in files:
        command += ["--config-file", str(file)]
    told = {f"OS_{name.upper()}": str(value) for name, value in account("admin").items()}
    environment = {**cloud.launch.environment(host), **told, "OS_IDENTITY_API_VERSION": "3"}
    done = run(
        cloud.lab.hosts[host].holder.entered([*command, "appliance", *words, "--json"]),
        timeout=seconds, env=environment, cwd="/",
    )  # fmt: skip
    return json.loads(done.stdout[done.stdout.index("{") :])


def publish(
    cloud: Cloud, server: Server, name: str, image_store: str | None = None, traces: bool = True
) -> Published:
    """Publish a server and register its image, which servers can also be started cold from.

    ``image_store``: where hosts read, if not below the cloud's own directory of stores.
    """
    directory = cloud.places.stores / "appliances"
    directory.mkdir(parents=True, exist_ok=True)
    store, host = f"file://{directory}", server.host
    told = manage(
        cloud, host, "publish", "--server", server.uuid, "--name", name, "--store", store,
        "--image", name, "--image-store", image_store or store,
        "--traces", "yes" if traces else "no",
        "--work-directory", str(cloud.places.run / host / "publish"),
    )  # fmt: skip

    def boot(api: Any) -> None:
        of = api.image.find_image(IMAGE)
        wanted = {key: of.properties.get(key, getattr(of, key, None)) for key in _BOOT}
        if None in wanted.values():
            raise LabError(f"image {IMAGE} lacks one of {', '.join(_BOOT)}")
        api.image.update_image(api.image.get_image(told["image"]), **wanted)

    cloud.api.call(boot)
    return Published(told["manifest"], told["image"], told)


def learn(cloud: Cloud, host: str, published: Published, *traces: str) -> Any:
    """Make a plan of traces, and have the appliance's images use it."""
    store = f"file://{cloud.places.stores / 'appliances'}"
    return manage(
        cloud, host, "learn", published.manifest, "--store", store, "--image", "--traces", *traces,
        seconds=_LEARN_S,
    )  # fmt: skip
