# SPDX-License-Identifier: Apache-2.0
"""Who may forbid a VM to leave by post-copy: its flavor, its image, its owner, the operator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ALLOWED: Final = "allowed"
FORBIDDEN: Final = "forbidden"
VALUES: Final = (ALLOWED, FORBIDDEN)

FLAVOR_KEY: Final = "enlightened:post_copy"
METADATA_KEY: Final = "enlightened:post_copy"
IMAGE_KEY: Final = "image_enlightened_post_copy"
"""In the system metadata: Nova's image properties drop names they do not know, and an instance
keeps all properties of its image there."""
IMAGE_CHANNEL_KEY: Final = "image_enlightened_guest_channel"

_ON: Final = frozenset({"yes", "true", "on", "1"})


@dataclass(frozen=True)
class Permission:
    """Whether post-copy is allowed and who says so, in words.

    :param wrong: values nobody defined, in words: to be warned of. Each counts as forbidden.
    """

    allowed: bool
    why: str
    wrong: tuple[str, ...] = ()


def post_copy(
    flavor: Mapping[str, str],
    image: Mapping[str, str],
    metadata: Mapping[str, str],
    default: str,
) -> Permission:
    """What is allowed: nobody forbids it, and somebody allows it.

    :param flavor: extra specs.
    :param image: system metadata of the instance.
    :param metadata: the owner's.
    :param default: the operator's word where none of the three has one.
    """
    said = {
        f"flavor extra spec {FLAVOR_KEY}": flavor.get(FLAVOR_KEY),
        f"image property {IMAGE_KEY.removeprefix('image_')}": image.get(IMAGE_KEY),
        f"server metadata {METADATA_KEY}": metadata.get(METADATA_KEY),
    }
    words = {who: f"{who} is {value!r}" for who, value in said.items() if value is not None}
    wrong = tuple(words[who] for who in words if said[who] not in VALUES)
    forbidding = [words[who] for who in words if said[who] != ALLOWED]
    if forbidding:
        return Permission(False, "; ".join(forbidding), wrong)
    if words:
        return Permission(True, "; ".join(words.values()))
    return Permission(default == ALLOWED, f"[enlightened] post_copy is {default!r}")


def guest_channel(image: Mapping[str, str], default: bool) -> bool:
    """Whether a domain gets the guest channel. A word nobody defined keeps it out.

    :param image: system metadata of the instance.
    """
    said = image.get(IMAGE_CHANNEL_KEY, "").strip().lower()
    if not said or said in _ON:
        return default
    return False
