# SPDX-License-Identifier: Apache-2.0
"""What fuzzing has found stays found: every kept input, without a fuzzer."""

import gc
import pathlib
import sys

import pytest

from tests.fuzz import seeds
from tests.fuzz.targets import CORPUS, CRASHES, OPEN, TARGETS

MOST_IN_ALL = 96 << 10
"""Bytes of one target's kept inputs."""
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


@each_target
def test_kept_inputs_are_survived(target) -> None:
    one_input = target.load()
    inputs = target.inputs()
    assert inputs, "a target without a corpus"
    for path in inputs:
        one_input(path.read_bytes())


@each_target
def test_seeds_are_survived(target) -> None:
    one_input = target.load()
    for seed in seeds.SEEDS[target.name]():
        assert len(seed) <= target.longest
        one_input(seed)


@each_target
def test_nothing_is_kept_of_an_input(target) -> None:
    one_input = target.load()
    inputs = [path.read_bytes() for path in target.inputs()]

    def blocks_after(rounds: int) -> int:
        for data in inputs * rounds:
            one_input(data)
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(3)
    # Caches of the interpreter breathe; an object kept of each input would be thirty.
    assert blocks_after(30) - before < 15 * len(inputs)


@each_target
def test_a_corpus_is_small(target) -> None:
    sizes = [path.stat().st_size for path in target.inputs()]
    assert sum(sizes) <= MOST_IN_ALL
    assert max(sizes) <= target.longest


@pytest.mark.xfail(strict=False, reason="not mended yet")
@pytest.mark.parametrize(
    "path", sorted(OPEN.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_an_open_finding_is_survived(path: pathlib.Path) -> None:
    TARGETS[path.parent.name].load()(path.read_bytes())


def test_every_kept_input_is_some_targets() -> None:
    kept = {path.name for top in (CORPUS, CRASHES, OPEN) for path in top.glob("*/")}
    assert kept <= set(TARGETS)
    assert set(seeds.SEEDS) == set(TARGETS)


def test_a_target_that_breaks_is_noticed(tmp_path: pathlib.Path) -> None:
    handshake = TARGETS["link_handshake"].load()
    handshake(b"\1")
    with pytest.raises(TypeError):
        handshake("no bytes")
