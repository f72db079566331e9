# SPDX-License-Identifier: Apache-2.0
"""What a player says of itself."""

import enum
import time
from typing import Any, Final

from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.player_disks import Disks
from nova_enlightened.transfer.player_feed import Feed
from nova_enlightened.transfer.player_memory import Memory, Step


class Phase(enum.StrEnum):
    """How far a VM is, as its owner sees it."""

    BUFFERING = "buffering"
    """What should be there before it starts is on its way, or nobody has said ``play``."""
    PLAYING = "playing"
    """QEMU loads its devices, or takes up a VM whose player was lost."""
    STREAMING = "streaming"
    """It executes; not everything is there."""
    COMPLETE = "complete"
    """It executes, and everything is there."""
    FAILED = "failed"
    """It cannot be started; or it executes and waits for what cannot be had, which is tried on."""


_PLAYING: Final = frozenset({Step.LOADING, Step.BITMAPS, Step.RESUMING})


def phase_of(error: str | None, memory: Memory | None, feed: Feed | None) -> Phase:
    """The phase, from what there is already of a player."""
    if error is not None:
        return Phase.FAILED
    if feed is None or (memory is not None and memory.step is Step.CLOSED):
        return Phase.BUFFERING
    if memory is not None and memory.step in _PLAYING:
        return Phase.PLAYING
    if feed.trouble is not None and feed.someone_waits:
        return Phase.FAILED
    ended = memory is None or memory.step is Step.ENDED
    return Phase.COMPLETE if ended and feed.playback.complete else Phase.STREAMING


def percent_of(phase: Phase, feed: Feed | None) -> float:
    """How much of what the phase waits for is there, 0 to 100."""
    if feed is None:
        return 0.0
    progress = feed.playback.progress()
    if phase is Phase.BUFFERING and not feed.playback.before_done:
        wanted = max(1, feed.before_wanted)
        return round(min(99.0, 100.0 * progress.ready / wanted), 1)
    if phase in (Phase.BUFFERING, Phase.COMPLETE):
        return 100.0
    return round(100.0 * progress.present / max(1, progress.places), 1)


def of_memory(memory: Memory | None) -> dict[str, Any]:
    """Towards QEMU."""
    if memory is None:
        return {}
    now = time.monotonic()
    longest = max((now - since for since in memory.waiting.values()), default=0.0)
    return {
        "step": memory.step.value,
        "missing": memory.missing,
        "queued_bytes": memory.backlog,
        "faults": memory.faults,
        "waiting": len(memory.waiting),
        "longest_wait_s": round(longest, 3),
        "stalled_s": round(memory.stalled_s + longest, 3),
    }


def of_disks(disks: Disks | None) -> dict[str, Any]:
    """Towards the disks' clients."""
    if disks is None:
        return {}
    return {
        "clients": disks.clients,
        "reads": disks.reads,
        "waited": disks.waited,
        "waiting": len(disks.waiting),
    }


def of_feed(feed: Feed | None) -> dict[str, Any]:
    """Towards the store."""
    if feed is None:
        return {}
    return {
        **feed.playback.progress()._asdict(),
        "bytes_from_store": feed.bytes_stored,
        "bytes_from_cache": feed.bytes_cached,
        "learning": not feed.prefetch,
        "buffer_left_s": feed.playback.buffer_left_s(),
        "trouble": feed.trouble,
    }


def of_cache(cache: ChunkCache) -> dict[str, Any]:
    """This host's cache."""
    return {"directory": cache.directory, "limit": cache.limit, "trouble": cache.trouble}
