# SPDX-License-Identifier: Apache-2.0
"""The agent inside a guest: tells the host which pages are in use, when it is asked to, and makes
a guest that was resumed from a stored appliance a machine of its own.

It listens on a virtio-serial port. *Armed*, it samples the busy processes within a CPU budget
and sends a snapshot after each sample; it stops by itself when its lease runs out. *Asked*, it
answers from what it has. Needs root (frame numbers are hidden from others), Python 3.6 or
later, and nothing else. It never reads the contents of memory.
"""

import argparse
import json
import os
import signal
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from nova_enlightened.guest import clone, wire
from nova_enlightened.guest.budget import Budget
from nova_enlightened.guest.frames import Frames
from nova_enlightened.guest.port import Port, find_port
from nova_enlightened.guest.proc import Proc
from nova_enlightened.guest.sampler import Part, Sampler
from nova_enlightened.guest.sources import offered

VERSION = "1.1"
PORT = "/dev/virtio-ports/" + wire.PORT_NAME
FIRST_SAMPLE_S = 0.5
"""The first sample after arming is short: a host may decide to evict at any time."""
FRESH_S = 1.0
"""When asked with an older snapshot than this, take a sample right after answering."""
ANSWER_S = 0.2
"""How long to read what frames are before an answer that has to tell of them."""
FRAMES_SHARE = 1 / 3
"""Of the CPU limit, for reading what frames are; the rest is for samples."""
SAMPLES_AHEAD_S = 60.0
FRAMES_AHEAD_S = 120.0
"""What so many seconds allow of each may be used at once."""
DEFAULTS = {"interval_s": 1.0, "max_s": 300.0, "cpu_limit": 0.03}
BOUNDS = {"interval_s": (0.1, 60.0), "max_s": (1.0, 3600.0), "cpu_limit": (0.001, 0.5)}

Said = Dict[str, Any]


class Agent:
    """What the agent knows and does; `Port` is how it is reached."""

    def __init__(self, proc: Proc, sysfs: str = "/sys") -> None:
        now = time.monotonic()
        share = DEFAULTS["cpu_limit"]
        self._proc = proc
        self._settings = dict(DEFAULTS)
        self._budget = Budget(share * (1 - FRAMES_SHARE), SAMPLES_AHEAD_S, now)
        self._frames_budget = Budget(share * FRAMES_SHARE, FRAMES_AHEAD_S, now)
        self._frames = Frames(proc, proc.frames(), self._frames_budget)
        self._sources = offered(proc, self._frames.count, sysfs)
        self._sampler: Optional[Sampler] = None
        self._until = 0.0
        self._due = 0.0
        self._snapshot = b""
        self._snapshot_at = 0.0
        self._announce = False
        """Push, though no sample is due."""
        self._unfinished = False
        """Somebody who did not arm has asked before all frames were read."""
        self._trouble = ""
        self._answers: Dict[int, Callable[[Said], Tuple[int, Said]]] = {
            wire.HELLO: self._hello,
            wire.ARM: self._arm,
            wire.DISARM: self._disarm,
            wire.STATUS: self._status,
            wire.CLONE: self._clone,
        }

    def answer(self, kind: int, request: int, payload: bytes) -> bytes:
        """The frame to send for a request; nothing for what needs no answer."""
        try:
            if kind == wire.ASK:
                return wire.frame(wire.SNAPSHOT, self._recent(), request, compressed=True)
            if kind == wire.PING:
                return wire.frame(wire.PONG, payload, request)
            if kind not in self._answers:
                return b""
            said = json.loads(payload.decode("utf-8")) if payload else {}
            reply, body = self._answers[kind](said if isinstance(said, dict) else {})
        except (OSError, ValueError, RecursionError) as error:
            reply, body = wire.ERROR, {"error": "%s: %s" % (type(error).__name__, error)}
        return wire.frame(reply, json.dumps(body).encode("utf-8"), request)

    def tick(self, now: float) -> bytes:
        """Do what is most urgent of what is due. Returns a frame to push, or nothing."""
        if self._sampler is not None and now >= self._until:
            self.stop()
        try:
            if self._sampler is not None and now >= self._due:
                self._take_sample(now)
            elif self._reading and self._frames.due(now) <= 0:
                self._read_frames(now)
        except OSError as error:
            self._give_up(error)
        if not self._announce:
            return b""
        self._announce = False
        return wire.frame(wire.SNAPSHOT, self._snapshot, compressed=True)

    def timeout(self, now: float) -> Optional[float]:
        """Seconds until `tick` has something to do; None for never."""
        if self._announce:
            return 0.0
        waits = [self._frames.due(now)] if self._reading else []
        if self._sampler is not None:
            waits.append(min(self._due, self._until) - now)
        return max(0.0, min(waits)) if waits else None

    @property
    def _reading(self) -> bool:
        return self._sampler is not None or self._unfinished

    def stop(self) -> None:
        """Stop sampling and leave the guest as it was. Harmless when not armed."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
        self._forget_frames(self._frames.count)
        self._snapshot = b""
        self._announce = self._unfinished = False

    def _forget_frames(self, count: int) -> None:
        self._frames = Frames(self._proc, count, self._frames_budget)

    def _take_sample(self, now: float) -> None:
        assert self._sampler is not None
        began = time.process_time()
        elsewhere = self._sampler.sample(now)
        self._make_snapshot(now)
        self._budget.spend(time.process_time() - began + elsewhere, now)
        self._due = now + max(self._settings["interval_s"], self._budget.wait(now))

    def _read_frames(self, now: float) -> None:
        if self._frames.step(now):
            self._unfinished = False
            if self._sampler is None or self._sampler.samples:
                self._make_snapshot(now)

    def _make_snapshot(self, now: float) -> None:
        self._snapshot = wire.compress(self._parts(now))
        self._snapshot_at = now
        self._announce = True

    def _recent(self) -> bytes:
        """A snapshot from what there is. Who asks now may have decided to evict: the next
        sample follows at once, whatever the budget says.
        """
        now = time.monotonic()
        if self._sampler is None:
            if not self._unfinished:
                self._forget_frames(self._proc.frames())
            self._frames.read_for(ANSWER_S)
            self._unfinished = not self._frames.passes
            return wire.compress(self._parts(now))
        if not self._snapshot:
            self._frames.read_for(ANSWER_S)
            return wire.compress(self._parts(now))
        if now - self._snapshot_at > FRESH_S:
            self._due = now
            self._frames.hurry(now)
        return self._snapshot

    def _parts(self, now: float) -> Iterator[Part]:
        """A snapshot, uncompressed; its format is told in nova_enlightened.knowledge.snapshot."""
        sampler = self._sampler
        name = self._sources[0].name.encode() if sampler else b"page-flags"
        bitmaps = sampler.bitmaps if sampler else []
        watched = sorted(sampler.watched.values(), key=lambda w: -w.cpu) if sampler else []
        yield wire.SNAPSHOT_HEAD.pack(
            wire.SNAPSHOT_MAGIC,
            wire.SNAPSHOT_VERSION,
            min(sampler.samples, 0xFFFF) if sampler else 0,
            now,
            self._frames.count,
            self._frames.read,
            len(watched),
            len(bitmaps),
            0,
            len(name),
        )
        yield name
        for evidence in self._frames.parts():
            yield evidence
        for bitmap in bitmaps:
            yield bitmap
        for process in watched:
            for part in process.parts():
                yield part

    def _hello(self, said: Said) -> Tuple[int, Said]:
        return wire.HELLO, {
            "agent": VERSION,
            "protocol": wire.PROTOCOL,
            "kernel": os.uname().release,
            "frames": self._frames.count,
            "sources": [source.name for source in self._sources],
            "source": self._sources[0].name,
        }

    def _arm(self, said: Said) -> Tuple[int, Said]:
        now = time.monotonic()
        for name, (low, high) in BOUNDS.items():
            self._settings[name] = min(high, max(low, float(said.get(name, DEFAULTS[name]))))
        self._until = now + self._settings["max_s"]
        limit = self._settings["cpu_limit"]
        self._budget.allow(limit * (1 - FRAMES_SHARE), now)
        self._frames_budget.allow(limit * FRAMES_SHARE, now)
        if self._sampler is None:
            began = time.process_time()
            self._forget_frames(self._proc.frames())  # memory may have been added
            self._sampler = Sampler(self._proc, self._sources[0], self._frames.count, now)
            self._budget.spend(time.process_time() - began, now)
            self._due = now + min(FIRST_SAMPLE_S, self._settings["interval_s"])
        else:
            self._announce = bool(self._snapshot)  # who arms may be new here
        return wire.ARMED, dict(self._settings, source=self._sources[0].name)

    def _disarm(self, said: Said) -> Tuple[int, Said]:
        self.stop()
        return self._status(said)

    def _status(self, said: Said) -> Tuple[int, Said]:
        now = time.monotonic()
        sampler = self._sampler
        return wire.STATUS, {
            "armed": sampler is not None,
            "source": self._sources[0].name,
            "samples": sampler.samples if sampler else 0,
            "watched": len(sampler.watched) if sampler else 0,
            "skipped": sampler.skipped if sampler else 0,
            "next_s": round(self.timeout(now) or 0.0, 3),
            "lease_s": round(max(0.0, self._until - now), 3) if sampler else 0,
            "fault_us": round(self._sources[0].fault_s * 1e6, 3),
            "frames_read": self._frames.read,
            "spent_s": round(self._budget.spent + self._frames_budget.spent, 6),
            "cpu_s": round(time.process_time(), 6),
            "trouble": self._trouble,
        }

    def _clone(self, said: Said) -> Tuple[int, Said]:
        self.stop()  # what was sampled was of another machine's life
        return wire.CLONED, clone.become(said, clone.Machine())

    def _give_up(self, error: OSError) -> None:
        """The source does not work after all: go on with the next best."""
        self._trouble = "%s: %s" % (self._sources[0].name, error)
        log(self._trouble)
        if self._sampler is None:
            self._unfinished = False
            return
        self.stop()
        if len(self._sources) > 1:
            del self._sources[0]
            left = self._until - time.monotonic()
            self._arm(dict(self._settings, max_s=left))


def serve(agent: Agent, port: Port) -> None:
    """Answer and sample, for ever."""
    while True:
        for request in port.wait(agent.timeout(time.monotonic())):
            port.answer(agent.answer(*request))
        if not port.answering:  # a sample takes a while, and somebody waits
            pushed = agent.tick(time.monotonic())
            if pushed:
                port.push(pushed)


def log(message: str) -> None:
    """To the journal."""
    sys.stderr.write("nova-enlightened-guest: %s\n" % message)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run until terminated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", default=PORT, help="the virtio-serial port's device")
    parser.add_argument("--check", action="store_true", help="say what this kernel offers, exit")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        agent = Agent(Proc())
    except OSError as error:
        log("cannot read page flags (is this root?): %s" % error)
        return 1
    if options.check:
        _, said = agent._hello({})
        print(json.dumps(said))
        return 0
    path = find_port(options.port)
    while path is None:
        time.sleep(5.0)
        path = find_port(options.port)
    port = Port(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    try:
        serve(agent, port)
    finally:
        agent.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
