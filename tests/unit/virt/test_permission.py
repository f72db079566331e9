# SPDX-License-Identifier: Apache-2.0
"""Who may forbid post-copy."""

import pytest

from nova_enlightened.virt import permission
from nova_enlightened.virt.permission import FLAVOR_KEY, IMAGE_KEY, METADATA_KEY


@pytest.mark.parametrize("default, allowed", [("allowed", True), ("forbidden", False)])
def test_the_operators_default_holds_where_nobody_says_anything(
    default: str, allowed: bool
) -> None:
    said = permission.post_copy({}, {}, {}, default)
    assert said.allowed is allowed
    assert "[enlightened] post_copy" in said.why
    assert not said.wrong


@pytest.mark.parametrize("who", range(3))
def test_any_of_flavor_image_and_owner_allows_what_the_operator_forbids(who: int) -> None:
    sources: list[dict[str, str]] = [{}, {}, {}]
    sources[who] = {(FLAVOR_KEY, IMAGE_KEY, METADATA_KEY)[who]: "allowed"}
    assert permission.post_copy(*sources, "forbidden").allowed


@pytest.mark.parametrize("who", range(3))
def test_one_that_forbids_outweighs_all_that_allow(who: int) -> None:
    words = ["allowed"] * 3
    words[who] = "forbidden"
    said = permission.post_copy(
        {FLAVOR_KEY: words[0]}, {IMAGE_KEY: words[1]}, {METADATA_KEY: words[2]}, "allowed"
    )
    assert not said.allowed
    assert ("flavor", "image", "metadata")[who] in said.why


@pytest.mark.parametrize("value", ["", "Allowed", "yes", "allowed ", "\N{CYRILLIC SMALL LETTER A}"])
def test_a_value_that_nobody_defined_forbids_and_is_named(value: str) -> None:
    said = permission.post_copy({}, {IMAGE_KEY: value}, {}, "allowed")
    assert not said.allowed
    assert len(said.wrong) == 1
    assert repr(value) in said.wrong[0]


@pytest.mark.parametrize(
    "value, default, wanted",
    [
        (None, True, True),
        (None, False, False),
        ("yes", False, False),
        ("True", True, True),
        ("no", True, False),
        ("0", True, False),
        ("perhaps", True, False),
    ],
)
def test_an_image_may_refuse_the_guest_channel_but_not_ask_for_it(
    value: str | None, default: bool, wanted: bool
) -> None:
    image = {} if value is None else {permission.IMAGE_CHANNEL_KEY: value}
    assert permission.guest_channel(image, default) is wanted
