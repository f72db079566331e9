# SPDX-License-Identifier: Apache-2.0
"""What Nova's API accepts as ``enlightened:`` extra specs of a flavor."""

from typing import Any

from nova.api.validation.extra_specs import base

from nova_enlightened.virt import permission

EXTRA_SPEC_VALIDATORS = [
    base.ExtraSpecValidator(
        name=permission.FLAVOR_KEY,
        description=(
            "Whether live migrations of the instance may use post-copy in the order of its guest."
        ),
        value={
            "type": str,
            "description": "Overrides the operator's default; the image may still forbid it",
            "enum": list(permission.VALUES),
        },
    ),
    base.ExtraSpecValidator(
        name="enlightened:eviction",
        description="Whether a contended host may move the instance away by itself.",
        value={
            "type": str,
            "description": "``never`` keeps it where it is until a person moves it",
            "enum": ["allowed", "never"],
        },
    ),
    base.ExtraSpecValidator(
        name="enlightened:priority",
        description="Which instances stay longest on a contended host.",
        value={
            "type": int,
            "description": "The higher, the later it has to leave",
            "min": 0,
            "max": 100,
        },
    ),
]


def register() -> list[Any]:
    """As ``nova.api.extra_spec_validators`` wants it."""
    return EXTRA_SPEC_VALIDATORS
