# SPDX-License-Identifier: Apache-2.0
"""Guests made up for the simulator: memory, accesses, and what such a guest would tell.

Randomness is the caller's: the same generator state makes the same guest.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nova_enlightened.exception import PlanError
from nova_enlightened.knowledge import heat
from nova_enlightened.knowledge.classes import PageClass
from nova_enlightened.knowledge.guest_pages import GuestPages, PlacedProcess
from nova_enlightened.knowledge.space import TARGET_PAGE, PageSpace
from nova_enlightened.plan.simulated_qemu import Accesses
from nova_enlightened.plan.transfer_plan import Pages

MIB: Final = (1 << 20) // TARGET_PAGE
"""Pages in a MiB."""
KINDS: Final = ("scattered", "contiguous", "zipf", "scan")
TEXT: Final = 14
"""MiB of the kernel's image that are its text."""
SAMPLES: Final = 6
SAMPLE_SECONDS: Final = 0.5
TICK: Final = 0.004
"""Seconds between two timer interrupts of the guest's kernel."""

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GuestShape:
    """A guest's memory, in MiB, and its work.

    :ivar kind: `scattered`: hot pages at random among the process's, which are at random in
        physical memory; `contiguous`: both contiguous, as with huge pages; `zipf`: all pages are
        used, by a zipf law, slabs of 32 pages contiguous; `scan`: the process walks all
        its pages in virtual order.
    :ivar rate: process accesses a second at full pace.
    :ivar kernel_pages: of the kernel's pages, how many are in use.
    :ivar seconds: of accesses, before they repeat.
    """

    kind: str = "scattered"
    total: int = 768
    kernel: int = 90
    file: int = 120
    process: int = 300
    hot: int = 64
    freed: int = 200
    rate: float = 50_000.0
    kernel_pages: int = 900
    seconds: float = 10.0

    def __post_init__(self) -> None:
        """:raises PlanError: unknown kind, or the parts exceed the whole."""
        if self.kind not in KINDS:
            raise PlanError(f"no synthetic guest is called {self.kind!r}: {', '.join(KINDS)}")
        if self.kernel + self.file + self.process + self.freed > self.total:
            raise PlanError("the parts of the synthetic guest exceed its memory")


@dataclass(frozen=True, eq=False)
class SyntheticGuest:
    """All a replay needs. `zero` are the pages never used, which cross as zero records."""

    space: PageSpace
    known: GuestPages
    accesses: Accesses
    zero: npt.NDArray[np.bool_]


def make_guest(shape: GuestShape, rng: np.random.Generator) -> SyntheticGuest:
    """Make up a guest of a certain shape."""
    pages = shape.total * MIB
    space = PageSpace([("pc.ram", pages * TARGET_PAGE), ("vga.vram", 16 << 20)])
    classes = np.full(space.pages, PageClass.UNKNOWN, np.uint8)
    classes[:pages] = PageClass.FREE
    image = shape.kernel * MIB // 4
    classes[:image] = PageClass.RESERVED
    above = np.arange(image, pages)
    mapped = _physical(shape, above, rng)
    classes[mapped] = PageClass.ANON
    rest = rng.permutation(above[classes[above] == PageClass.FREE])
    slab, kernel, cache, _freed, never = np.split(
        rest,
        np.cumsum([image, image * 2, shape.file * MIB, shape.freed * MIB]),
    )
    classes[slab], classes[kernel], classes[cache] = (
        PageClass.SLAB,
        PageClass.KERNEL,
        PageClass.FILE,
    )
    tables = np.sort(kernel[: -(-mapped.size // 512) + 300])
    classes[tables] = PageClass.PAGE_TABLE
    weights = _weights(shape, mapped.size, rng)
    accesses = _accesses(shape, mapped, weights, tables, _kernel_use(shape, image, slab, rng), rng)
    known = GuestPages(
        "synthetic",
        classes,
        _heat(shape, mapped, weights, space.pages, rng),
        (PlacedProcess("work", 1.0, True, mapped), PlacedProcess("idle", 0.0, False, cache)),
        SAMPLES,
    )
    zero = np.zeros(space.pages, np.bool_)
    zero[never] = True
    zero[pages:] = True
    return SyntheticGuest(space, known, accesses, zero)


def _physical(shape: GuestShape, above: Pages, rng: np.random.Generator) -> Pages:
    """Page numbers of the process's pages, in virtual order."""
    chunk = {"contiguous": 512, "zipf": 32}.get(shape.kind, 1)
    wanted = shape.process * MIB
    if shape.kind == "contiguous":
        return above[chunk : chunk + wanted].copy()
    chunks = above[: above.size // chunk * chunk].reshape(-1, chunk)
    return rng.permutation(chunks).reshape(-1)[:wanted]


def _weights(shape: GuestShape, count: int, rng: np.random.Generator) -> Weights:
    """Share of the accesses each page of the process gets; sums to 1."""
    weights: Weights = np.zeros(count)
    hot = shape.hot * MIB
    if shape.kind == "scattered":
        weights[rng.permutation(count)[:hot]] = 1.0
    elif shape.kind == "contiguous":
        weights[count // 3 : count // 3 + hot] = 1.0
    elif shape.kind == "zipf":
        # A page holds several keys of unlike popularity: their shares add up.
        keys = rng.permutation(1.0 / np.arange(1, 8 * count + 1) ** 0.99)
        weights = keys.reshape(count, 8).sum(axis=1)
    else:
        weights[:] = 1.0
    weights /= weights.sum()
    return weights


def _kernel_use(shape: GuestShape, image: int, slab: Pages, rng: np.random.Generator) -> Pages:
    """Kernel pages in use: two thirds text, in clusters of a few, one third slab."""
    text = min(image, TEXT * MIB)
    wanted = shape.kernel_pages * 2 // 3
    clusters = rng.geometric(0.3, wanted)
    starts = rng.integers(0, text, wanted)
    pages = np.repeat(starts, clusters) + np.concatenate([np.arange(n) for n in clusters])
    used = rng.permutation(np.unique(pages[:wanted] % text))
    return np.concatenate((used, slab[: shape.kernel_pages // 3]))


def _accesses(
    shape: GuestShape,
    mapped: Pages,
    weights: Weights,
    tables: Pages,
    kernel: Pages,
    rng: np.random.Generator,
) -> Accesses:
    count = int(shape.rate * shape.seconds)
    at = np.arange(count) / shape.rate
    if shape.kind == "scan":
        index = (np.arange(count) // 4 + mapped.size // 3) % mapped.size
    else:
        index = np.searchsorted(np.cumsum(weights), rng.random(count)).clip(0, mapped.size - 1)
    ticks = int(shape.seconds / TICK)
    # Popular kernel pages are touched at every tick, the last of them once in a while.
    used = (rng.zipf(1.2, (ticks, 24)) - 1) % kernel.size
    tick_at = np.repeat(np.arange(ticks) * TICK, 24)
    some = rng.random(count) < 0.2
    all_at = np.concatenate((at, at[some], tick_at))
    touched = np.concatenate((mapped[index], tables[index[some] // 512], kernel[used].reshape(-1)))
    by_time = np.argsort(all_at, kind="stable")
    return Accesses(all_at[by_time], touched[by_time], shape.seconds)


def _heat(
    shape: GuestShape, mapped: Pages, weights: Weights, pages: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """What an armed agent would have sampled before the eviction."""
    unused = np.exp(-weights * shape.rate * SAMPLE_SECONDS)
    if shape.kind == "scan":
        unused[:] = 0.5
    history = np.zeros(mapped.size, np.uint8)
    for bit in range(SAMPLES):
        history |= (rng.random(mapped.size) >= unused).astype(np.uint8) << np.uint8(7 - bit)
    found = np.zeros(pages, np.uint8)
    found[mapped] = heat.from_samples(history, SAMPLES, 0, mapped.size)
    return found
