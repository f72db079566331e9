# SPDX-License-Identifier: Apache-2.0
"""The process that plays a stored VM: towards QEMU it is the source of a post-copy migration, and
the server of its disks.

One event loop for all sockets; threads that fetch. Nothing is executed before what the plan wants
there first is there; a page the guest waits for goes ahead of everything; the rest follows.
"""

import collections
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.appliance.prefetch_order import Tail
from nova_enlightened.transfer import player_state, unix_socket
from nova_enlightened.transfer.chunk_cache import ChunkCache
from nova_enlightened.transfer.control import ControlServer
from nova_enlightened.transfer.player_appliance import Appliance, read_appliance
from nova_enlightened.transfer.player_disks import Disks
from nova_enlightened.transfer.player_feed import BUFFER, Feed
from nova_enlightened.transfer.player_fetch import Fetched, Fetchers
from nova_enlightened.transfer.player_memory import SERVING, Memory, Step
from nova_enlightened.transfer.player_spec import DISK_CLIENTS, PlayerSpec
from nova_enlightened.transfer.player_trace import KeptTrace
from nova_enlightened.transfer.stores import open_store
from nova_enlightened.transfer.wake import Wake

LOG = logging.getLogger(__name__)

STATE_INTERVAL_S: Final = 0.25
IDLE_S: Final = 120.0
"""A player whose VM has all its memory, and whose disks nobody has open for this long, ends."""
LINGER_S: Final = 60.0
"""How long a player whose VM cannot be started says so, and has its disks negotiated."""
JOIN_S: Final = 2.0


class Player:
    """One VM.

    :param listeners: inherited listening socket of each disk's export; what is missing is
        bound as the specification says.
    """

    def __init__(self, spec: PlayerSpec, listeners: Mapping[str, socket.socket]) -> None:
        self.spec = spec
        self.error: str | None = None
        self._listeners = dict(listeners)
        self._selector = selectors.DefaultSelector()
        self._store = open_store(spec.store)
        self._cache = ChunkCache(
            spec.cache_directory or "", spec.cache_limit if spec.cache_directory else 0
        )
        self._control = ControlServer(spec.control, self._calls(), self._selector)
        self._wake = Wake()
        self._posted: collections.deque[Callable[[], None]] = collections.deque()
        self._fetchers: Fetchers | None = None
        self._memory: Memory | None = None
        self._disks: Disks | None = None
        self._feed: Feed | None = None
        self._appliance: Appliance | None = None
        self._trace: KeptTrace | None = None
        self._watched = 0
        self._may_play = spec.resume
        self._stopping: str | None = None
        self._ended = False
        self._linger_until = 0.0
        self._state_due = 0.0
        self._executing_since: float | None = None
        self._ready_since: float | None = None
        self._started = time.monotonic()

    # -- life -------------------------------------------------------------------------------

    def run(self) -> int:
        """Play until everything is done, or the end is asked for. Answers the exit status."""
        try:
            self._open()
            while self._stopping is None and not self._over and not self._done:
                self._turn()
        except exception.EnlightenedError as error:
            LOG.exception("The player ends")
            self._fail(str(error))
        finally:
            self._close()
        LOG.info("Ended: %s", self.error or self._stopping or "complete")
        return 1 if self.error else 0

    def request_stop(self, reason: str) -> None:
        """End soon; callable from a signal handler or another thread."""
        self._stopping = reason
        self._wake()

    def _post(self, what: Callable[[], None]) -> None:
        """Have the loop's thread call this."""
        self._posted.append(what)
        self._wake()

    def _open(self) -> None:
        self._wake.open(self._selector)
        self._control.open()
        self.spec.save_state(self.state())
        threading.Thread(target=self._load, name="load", daemon=True).start()

    def _close(self) -> None:
        now = time.monotonic()
        if self._trace is not None:
            self._trace.save(now)
        self._ended = self.error is None
        self.spec.save_state(self.state())
        if self._disks is not None:
            self._disks.close()
        for listener in self._listeners.values():
            listener.close()
        if self._memory is not None:
            self._watch(0)
            self._memory.close()
        self._control.close()
        if self._fetchers is not None:
            self._fetchers.close()
            self._fetchers.join(JOIN_S)
        else:
            self._store.close()
        self._cache.close()
        self._selector.close()
        self._wake.close()

    def _fail(self, reason: str) -> None:
        self.error = self.error or reason

    @property
    def _over(self) -> bool:
        """Whether it failed, and nobody needs to be told any more."""
        return self.error is not None and time.monotonic() > self._linger_until

    # -- loading ----------------------------------------------------------------------------

    def _load(self) -> None:
        """In a thread of its own: read what has to be known of the appliance."""
        try:
            self._cache.open()
            found = read_appliance(
                self._store,
                self._cache,
                self.spec.manifest,
                None if self.spec.record else self.spec.plan,
                memory=self.spec.qemu_socket is not None,
            )
        except Exception as error:
            if not isinstance(error, exception.EnlightenedError):
                LOG.exception("Reading the appliance")
            reason = f"appliance {self.spec.manifest}: {error}"
            self._post(lambda: self._fail(reason))
        else:
            self._post(lambda: self._on_loaded(found))

    def _on_loaded(self, appliance: Appliance) -> None:
        LOG.info("Appliance %s is known", appliance.manifest.name)
        spec, space = self.spec, appliance.space
        self._appliance = appliance
        self._trace = KeptTrace(spec.trace, appliance.digest, space.places, learning=spec.record)
        if spec.resume:
            self._trace.take_up(time.monotonic())
        self._disks = Disks(space, appliance.zero, self._selector, self._on_disk_read)
        if spec.qemu_socket is not None:
            self._memory = Memory(
                space.memory,
                appliance.blocks,
                appliance.manifest.ram_section_id,
                appliance.zero[: space.memory_pages],
                self._on_fault,
            )
        self._fetchers = Fetchers(
            self._store,
            self._cache,
            appliance.layers,
            spec.connections,
            self._on_fetched,
            spec.bandwidth_limit,
        )
        self._feed = Feed(
            appliance,
            self._memory,
            self._disks,
            self._fetchers,
            prefetch=not spec.record,
            tail=Tail(spec.tail),
        )
        self._fetchers.start()
        self._open_disks()

    def _open_disks(self) -> None:
        assert self._disks is not None
        for target, path in self.spec.nbd_sockets.items():
            if target not in self._listeners:
                self._listeners[target] = unix_socket.listen(path, DISK_CLIENTS)
        listeners, self._listeners = self._listeners, {}
        self._disks.open(listeners)

    # -- the loop ---------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        waits = [self._state_due - now]
        if self._feed is not None and (due := self._feed.timeout()) is not None:
            waits.append(due)
        for key, ready in self._selector.select(max(0.0, min(waits))):
            key.data(ready)
        while self._posted:
            self._posted.popleft()()
        now = time.monotonic()
        if self._feed is not None:
            self._work(self._feed, now)
        if now >= self._state_due:
            self.spec.save_state(self.state())
            self._state_due = time.monotonic() + STATE_INTERVAL_S

    def _work(self, feed: Feed, now: float) -> None:
        if self.error is not None:
            return
        feed.work(now, executing=self._executing)
        if feed.fatal is not None:
            self._fail(feed.fatal)
            if self._memory is not None and self._memory.step is Step.CLOSED:
                # Its domain may be about to be made: a QEMU whose disk is gone would end with
                # other words than these.
                self._linger_until = now + LINGER_S
                if self._disks is not None:
                    self._disks.refuse()
            return
        self._play_if_due(feed, now)
        if self._memory is not None:
            self._memory.flush()
            self._rewatch(self._memory)
        if self._may_fetch:
            serving = self._memory is None or self._memory.step in SERVING
            feed.pump(now, serving=serving)
        if self._trace is not None:
            self._trace.save_if_due(now)

    @property
    def _may_fetch(self) -> bool:
        """Not before QEMU has told what it has, where it has some of it."""
        if not self.spec.resume or self._memory is None:
            return True
        return self._memory.step not in (Step.CLOSED, Step.BITMAPS, Step.RESUMING)

    @property
    def _executing(self) -> bool:
        """Whether the guest has executed: then it cannot be started anew."""
        return self._memory is None or self.spec.resume or self._executing_since is not None

    @property
    def _ready(self) -> bool:
        """Whether what should be there before the guest starts is there."""
        if self._feed is None:
            return False
        full = self._memory is not None and self._memory.backlog >= BUFFER
        return full or self._feed.playback.before_done

    @property
    def _done(self) -> bool:
        """Whether nobody needs this player any more."""
        if self._disks is None or self._disks.clients:
            return False
        if self._memory is not None and self._memory.step is not Step.ENDED:
            return False
        if not self.spec.nbd_sockets:
            return True
        return time.monotonic() - self._disks.last_used > IDLE_S

    # -- QEMU -------------------------------------------------------------------------------

    def _play_if_due(self, feed: Feed, now: float) -> None:
        memory, appliance = self._memory, self._appliance
        if memory is None or appliance is None or memory.step is not Step.CLOSED:
            return
        if not self.spec.resume and self._ready and self._ready_since is None:
            self._ready_since = now
        if not self._may_play or not (self.spec.resume or self._ready):
            return
        assert self.spec.qemu_socket is not None
        assert self._trace is not None
        if self.spec.resume:
            memory.resume(self.spec.qemu_socket)
            return
        self._trace.begin(now)
        memory.open(self.spec.qemu_socket, appliance.manifest.configuration, appliance.device_state)

    def _rewatch(self, memory: Memory) -> None:
        if memory.socket is None or memory.step is Step.ENDED:
            self._watch(0)
            return
        writing = bool(memory.socket.backlog)
        self._watch(selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0))

    def _watch(self, wanted: int) -> None:
        memory = self._memory
        if wanted == self._watched or memory is None or memory.socket is None:
            return
        if not self._watched:
            self._selector.register(memory.socket, wanted, lambda _: self._on_qemu(memory))
        elif not wanted:
            self._selector.unregister(memory.socket)
        else:
            self._selector.modify(memory.socket, wanted, lambda _: self._on_qemu(memory))
        self._watched = wanted

    def _on_qemu(self, memory: Memory) -> None:
        before = memory.step
        memory.read()
        if memory.lost:
            raise exception.PlayerError(f"QEMU closed its connection while {memory.step.value}")
        if before is memory.step:
            return
        if memory.step is Step.EXECUTING:
            self._executing_since = time.monotonic()
            if self.spec.resume and self._feed is not None:
                self._feed.took_up()
                self._feed.wanted(list(memory.waiting))
        if memory.step is Step.ENDED:
            self._watch(0)
            memory.close()

    # -- what the guest touches, and what comes ----------------------------------------------

    def _on_fault(self, places: range) -> None:
        assert self._trace is not None
        self._trace.touched(places, time.monotonic())
        if self._feed is not None and self._may_fetch:
            self._feed.wanted(places)

    def _on_disk_read(self, places: range, missing: list[int]) -> None:
        assert self._trace is not None
        if self._trace.began is not None:
            self._trace.touched(places, time.monotonic())
        if missing and self._feed is not None:
            self._feed.wanted(missing)

    def _on_fetched(self, fetched: Fetched) -> None:
        """In the thread that fetched it."""
        if self._feed is not None:
            self._feed.done(fetched)
            self._wake()

    # -- control ----------------------------------------------------------------------------

    def _calls(self) -> dict[str, Any]:
        return {
            "status": self.state,
            "play": self._play_call,
            "fill": self._fill_call,
            "trace": self._trace_call,
            "stop": self._stop_call,
        }

    def _play_call(self) -> dict[str, Any]:
        if self.spec.qemu_socket is None:
            raise exception.PlayerError("this player has no memory to play")
        self._may_play = True
        return {"ready": self._ready}

    def _fill_call(self) -> dict[str, Any]:
        if self._feed is None:
            raise exception.PlayerError("the appliance is not known yet")
        self._feed.fill()
        return {}

    def _trace_call(self) -> dict[str, Any]:
        if self._trace is None:
            raise exception.PlayerError("the appliance is not known yet")
        self._trace.save(time.monotonic())
        return {"path": self._trace.path, "touched": len(self._trace)}

    def _stop_call(self) -> dict[str, Any]:
        self.request_stop("stopped by an operator")
        return {}

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What this player is doing, ready for JSON."""
        phase = player_state.phase_of(self.error, self._memory, self._feed)
        return {
            "pid": os.getpid(),
            "monotonic": time.monotonic(),
            "phase": phase,
            "percent": player_state.percent_of(phase, self._feed),
            "error": self.error or (self._feed.trouble if self._feed is not None else None),
            "manifest": self.spec.manifest,
            "ready": self._ready,
            "executing": self._executing,
            "ended": self._ended,
            "started": self._started,
            "ready_since": self._ready_since,
            "executing_since": self._executing_since,
            "cpu_s": round(time.process_time(), 3),
            "touched": len(self._trace) if self._trace is not None else 0,
            "memory": player_state.of_memory(self._memory),
            "disks": player_state.of_disks(self._disks),
            "progress": player_state.of_feed(self._feed),
            "cache": player_state.of_cache(self._cache),
        }
