# SPDX-License-Identifier: Apache-2.0
"""Traits of the host's provider: ours are kept, others untouched, conflicts met with patience."""

import pathlib
import threading
from typing import Any

import openstack.exceptions
import pytest

from nova_enlightened import conf as options
from nova_enlightened import exception
from nova_enlightened.host import provider_traits
from nova_enlightened.host.provider_traits import (
    CONTENDED,
    POST_COPY,
    ProviderTraits,
    TraitKeeper,
    wanted_traits,
)

UUID = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
PROVIDERS = "/resource_providers"
TRAITS = f"{PROVIDERS}/{UUID}/traits"
OTHERS = frozenset({"COMPUTE_NODE", "HW_CPU_X86_AVX2", "CUSTOM_GOLD"})


class Answer:
    def __init__(self, status: int, body: Any = None) -> None:
        self.status_code = status
        self.ok = status < 400
        self.text = str(body)
        self._body = body

    def json(self) -> Any:
        if self._body is None:
            raise ValueError("no JSON")
        return self._body


class Placement:
    """As much of the placement API as is used, with one provider."""

    def __init__(self, *traits: str) -> None:
        self.traits = OTHERS | set(traits)
        self.known = {*OTHERS}
        self.generation = 1
        self.providers = [{"uuid": UUID, "name": "node1"}]
        self.conflicts = 0
        self.failure: Exception | None = None
        self.puts: list[str] = []

    def get(self, url: str, **arguments: Any) -> Answer:
        if self.failure is not None:
            raise self.failure
        assert arguments["microversion"] == "1.6"
        assert arguments["raise_exc"] is False
        if url == PROVIDERS:
            assert arguments["params"] == {"name": "node1"}
            return Answer(200, {"resource_providers": self.providers})
        if url != TRAITS:
            return Answer(404, {})
        return Answer(200, {
            "traits": sorted(self.traits), "resource_provider_generation": self.generation
        })  # fmt: skip

    def put(self, url: str, **arguments: Any) -> Answer:
        self.puts.append(url)
        if url.startswith("/traits/"):
            self.known.add(url.removeprefix("/traits/"))
            return Answer(201)
        body = arguments["json"]
        if self.conflicts:
            self.conflicts -= 1
            self.generation += 1
        if body["resource_provider_generation"] != self.generation:
            return Answer(409, {})
        if not set(body["traits"]) <= self.known:
            return Answer(400, "no such trait")
        self.traits = frozenset(body["traits"])
        self.generation += 1
        return Answer(200, {})


def test_our_traits_are_added_to_those_of_others() -> None:
    placement = Placement()
    assert ProviderTraits(placement, "node1").keep(frozenset({POST_COPY}))
    assert placement.traits == OTHERS | {POST_COPY}


def test_a_trait_that_does_not_hold_any_more_is_taken_away() -> None:
    placement = Placement(POST_COPY, CONTENDED)
    placement.known |= {POST_COPY, CONTENDED}
    ProviderTraits(placement, "node1").keep(frozenset({POST_COPY}))
    assert placement.traits == OTHERS | {POST_COPY}


def test_what_is_so_already_is_not_written() -> None:
    placement = Placement(POST_COPY)
    assert not ProviderTraits(placement, "node1").keep(frozenset({POST_COPY}))
    assert placement.puts == []


def test_a_conflict_is_tried_again_with_what_is_there_then() -> None:
    placement = Placement()
    placement.conflicts = 2
    assert ProviderTraits(placement, "node1").keep(frozenset({POST_COPY}))
    assert placement.traits == OTHERS | {POST_COPY}


def test_conflicts_without_end_are_given_up() -> None:
    placement = Placement()
    placement.conflicts = 1000
    with pytest.raises(exception.PlacementError, match="faster"):
        ProviderTraits(placement, "node1").keep(frozenset({POST_COPY}))


def test_a_provider_that_nova_has_not_made_yet_is_told() -> None:
    placement = Placement()
    placement.providers = []
    kept = ProviderTraits(placement, "node1")
    with pytest.raises(exception.PlacementError, match="0 resource providers are called node1"):
        kept.keep(frozenset({POST_COPY}))
    placement.providers = [{"uuid": UUID}]
    assert kept.keep(frozenset({POST_COPY}))


def test_a_provider_made_anew_is_found() -> None:
    placement = Placement()
    placement.providers = [{"uuid": "gone"}]
    kept = ProviderTraits(placement, "node1")
    with pytest.raises(exception.PlacementError, match="404"):
        kept.keep(frozenset({POST_COPY}))
    placement.providers = [{"uuid": UUID}]
    assert kept.keep(frozenset({POST_COPY}))


def test_the_sdks_errors_are_translated() -> None:
    placement = Placement()
    placement.failure = openstack.exceptions.SDKException("no endpoint")
    with pytest.raises(exception.PlacementError, match="no endpoint"):
        ProviderTraits(placement, "node1").keep(frozenset())


def test_only_our_own_traits_are_ever_removed() -> None:
    assert wanted_traits(OTHERS | {CONTENDED}, frozenset()) == OTHERS


def test_the_keeper_writes_changes_in_the_background() -> None:
    placement, wrote = Placement(), threading.Event()

    class Noted(ProviderTraits):
        def keep(self, ours: frozenset[str]) -> bool:
            changed = super().keep(ours)
            wrote.set()
            return changed

    keeper = TraitKeeper(lambda: Noted(placement, "node1"))
    keeper.start()
    for traits in ({POST_COPY: True, CONTENDED: False}, {POST_COPY: True, CONTENDED: True}):
        wrote.clear()
        keeper.say(traits)
        assert wrote.wait(10)
    keeper.stop()
    assert placement.traits == OTHERS | {POST_COPY, CONTENDED}


def test_the_keeper_tries_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_traits, "RETRY_S", 0.01)
    placement, failures, wrote = Placement(), [1, 1], threading.Event()

    def provider() -> ProviderTraits:
        if failures:
            failures.pop()
            raise exception.LibvirtError("libvirt is not there yet")
        wrote.set()
        return ProviderTraits(placement, "node1")

    keeper = TraitKeeper(provider)
    keeper.start()
    keeper.say({POST_COPY: True})
    assert wrote.wait(10)
    keeper.stop()


def test_without_credentials_nothing_is_kept() -> None:
    assert provider_traits.api(options.read([])) is None


def test_credentials_that_make_no_sense_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "test.conf"
    file.write_text("[placement]\nauth_type = magic\n")
    with pytest.raises(exception.ConfigError, match=r"\[placement\].*magic"):
        provider_traits.api(options.read([str(file)]))


def test_novas_own_section_is_understood_before_anybody_is_asked(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "nova.conf"
    file.write_text(
        "[placement]\nauth_type = password\nauth_url = http://127.0.0.1:1/identity\n"
        "username = placement\npassword = secret\nproject_name = service\n"
        "project_domain_name = Default\nuser_domain_name = Default\nregion_name = RegionOne\n"
    )
    opened = provider_traits.api(options.read([str(file)]))
    assert opened is not None
    # A keystone that is down is no reason not to start.
    with pytest.raises(exception.PlacementError, match="identity"):
        opened()
