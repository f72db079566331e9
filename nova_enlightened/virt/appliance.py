# SPDX-License-Identifier: Apache-2.0
"""Which servers are to start from a stored appliance, as their metadata in Nova says.

An image says it by properties. They do not stay in an instance where Nova looks for properties of
its image: a snapshot of the server would inherit them, and a server made from the snapshot would
be the appliance again instead of what was snapshotted.
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from nova_enlightened import exception

IMAGE_PREFIX: Final = "image_enlightened_appliance_"
"""In an instance's system metadata: Nova keeps all properties of its image there."""
KEPT_PREFIX: Final = "enlightened_appliance_"
TRAIT_KEY: Final = "image_trait:CUSTOM_ENLIGHTENED_STREAMING"
_NAMES: Final = ("store", "manifest", "plan", "traces")
_IMAGE: Final = "image"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ON: Final = frozenset({"yes", "true", "on", "1"})


@dataclass(frozen=True)
class Wanted:
    """An appliance that an image names.

    :param manifest, plan: SHA-256 of the files; no plan is None.
    :param traced: a trace of the run may be kept.
    :param image: the image's id.
    """

    store: str
    manifest: str
    plan: str | None
    traced: bool
    image: str

    def asked(self, *, memory: bool) -> dict[str, Any]:
        """As ``rpc.HostAPI.prepare_appliance`` has it."""
        return {
            "store": self.store,
            "manifest": self.manifest,
            "plan": self.plan,
            "memory": memory,
            "traced": self.traced,
        }


def wanted(metadata: Mapping[str, str], image: str) -> Wanted | None:
    """What a server that is to be made of this image starts from; None: as Nova does it.

    :param metadata: system metadata of the instance.
    :raises ManifestError: the properties make no sense.
    """
    said = _said(metadata, IMAGE_PREFIX)
    if not said:
        return kept(metadata) if metadata.get(KEPT_PREFIX + _IMAGE) == image else None
    return _made(said, image)


def kept(metadata: Mapping[str, str]) -> Wanted | None:
    """What the server once started from.

    :raises ManifestError: what was kept makes no sense.
    """
    said = _said(metadata, KEPT_PREFIX)
    return _made(said, metadata.get(KEPT_PREFIX + _IMAGE, "")) if said else None


def keep(metadata: MutableMapping[str, str], what: Wanted) -> None:
    """Have the instance remember it where no snapshot inherits it."""
    said = _said(metadata, IMAGE_PREFIX) or _said(metadata, KEPT_PREFIX)
    for name in _NAMES:
        metadata.pop(IMAGE_PREFIX + name, None)
        metadata.pop(KEPT_PREFIX + name, None)
    metadata.pop(TRAIT_KEY, None)
    metadata.update({KEPT_PREFIX + name: value for name, value in said.items()})
    metadata[KEPT_PREFIX + _IMAGE] = what.image


def _said(metadata: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name: metadata[prefix + name] for name in _NAMES if metadata.get(prefix + name)}


def _made(said: Mapping[str, str], image: str) -> Wanted:
    for name in ("store", "manifest"):
        if name not in said:
            raise exception.ManifestError(f"the image has no property {KEPT_PREFIX}{name}")
    for name in ("manifest", "plan"):
        if name in said and not _SHA256.fullmatch(said[name]):
            raise exception.ManifestError(
                f"image property {KEPT_PREFIX}{name} = {said[name][:80]!r} is no SHA-256"
            )
    traced = said.get("traces", "").strip().lower() in _ON
    return Wanted(said["store"], said["manifest"], said.get("plan"), traced, image)
