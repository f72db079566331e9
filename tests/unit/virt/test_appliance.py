# SPDX-License-Identifier: Apache-2.0
"""What an instance's metadata says of an appliance."""

import pytest

from nova_enlightened import exception
from nova_enlightened.virt import appliance

STORE, MANIFEST, PLAN = "https://appliances.example.org/", "a1" * 32, "b2" * 32
IMAGE = "e4d5b1f4-5d36-4d0c-9d2c-3f6f7d1c5a11"


def metadata(**said: str) -> dict[str, str]:
    properties = {"store": STORE, "manifest": MANIFEST, "plan": PLAN, **said}
    named = {appliance.IMAGE_PREFIX + name: value for name, value in properties.items() if value}
    return {**named, appliance.TRAIT_KEY: "required", "image_min_disk": "1"}


def test_an_ordinary_image_names_none() -> None:
    assert appliance.wanted({"image_min_disk": "1"}, IMAGE) is None


def test_an_images_properties_name_one() -> None:
    wanted = appliance.wanted(metadata(), IMAGE)
    assert wanted == appliance.Wanted(STORE, MANIFEST, PLAN, False, IMAGE)


def test_a_plan_can_be_missing() -> None:
    wanted = appliance.wanted(metadata(plan=""), IMAGE)
    assert wanted is not None
    assert wanted.asked(memory=True)["plan"] is None


@pytest.mark.parametrize("said, traced", [("yes", True), ("no", False), ("maybe", False)])
def test_a_trace_needs_consent(said: str, traced: bool) -> None:
    wanted = appliance.wanted(metadata(traces=said), IMAGE)
    assert wanted is not None
    assert wanted.traced is traced


@pytest.mark.parametrize(
    "said", [{"manifest": ""}, {"store": ""}, {"manifest": "A1" * 32}, {"plan": "../x"}]
)
def test_properties_that_make_no_sense_are_refused(said: dict[str, str]) -> None:
    with pytest.raises(exception.ManifestError):
        appliance.wanted(metadata(**said), IMAGE)


def kept() -> dict[str, str]:
    told = metadata()
    wanted = appliance.wanted(told, IMAGE)
    assert wanted is not None
    appliance.keep(told, wanted)
    return told


def test_what_is_kept_is_no_property_of_an_image_any_more() -> None:
    assert [name for name in kept() if name.startswith("image_")] == ["image_min_disk"]


def test_an_evacuated_server_starts_from_it_again() -> None:
    assert appliance.wanted(kept(), IMAGE) == appliance.wanted(metadata(), IMAGE)


def test_an_unshelved_server_starts_from_its_snapshot() -> None:
    assert appliance.wanted(kept(), "0a1b2c3d-0000-4000-8000-000000000000") is None


def test_keeping_twice_changes_nothing() -> None:
    once = kept()
    wanted = appliance.wanted(once, IMAGE)
    assert wanted is not None
    twice = dict(once)
    appliance.keep(twice, wanted)
    assert twice == once


def test_a_rebuild_with_another_appliance_takes_that() -> None:
    told = {**kept(), **metadata(manifest="c3" * 32)}
    wanted = appliance.wanted(told, IMAGE)
    assert wanted is not None
    appliance.keep(told, wanted)
    assert appliance.kept(told) == wanted
    assert wanted.manifest == "c3" * 32
