# SPDX-License-Identifier: Apache-2.0
"""What the relays cost a plain pre-copy: throughput, with TLS and without, and CPU time.

Two QEMUs without libvirt, one of them with a gibibyte of RAM without a zero page and no
processor running, an unshaped link. Bytes and time are QEMU's own account.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import measures
from bench.bare import BareQemu, guest_ram
from bench.qmp import MonitorError
from bench.results import Outcome
from bench.session import Session, certificates, versions
from lab import Lab, relays
from lab.migration import cpu_seconds
from nova_enlightened.host.relays import RunningRelay

DIRECT, PLAIN, TLS = "direct", "plain", "tls"
READY_S = 20.0
_ports = itertools.count(4700)


@dataclass(frozen=True)
class Transfer:
    """One migration: bytes carried, seconds, CPU seconds of both relays (0 without)."""

    round: int
    way: str
    carried: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.carried / self.seconds


def relay(session: Session) -> Outcome:
    """Relays / direct, TLS / plain, CPU for each gigabyte."""
    lab = session.lab("bookworm")
    lab.link.shape(None)
    tls = certificates(lab)
    ram = Path("/dev/shm") / f"nova-enlightened-bench-{os.getpid()}"
    found: list[Transfer] = []
    failures: list[str] = []
    try:
        guest_ram(ram, session.options.relay_mib << 20)
        for number, turn in enumerate(
            measures.interleaved((DIRECT, PLAIN, TLS), session.options.rounds), 1
        ):
            for way in turn:
                session.tell(f"round {number} of {session.options.rounds}: {way}")
                try:
                    found.append(_transfer(lab, ram, number, way, tls))
                except (MonitorError, TimeoutError) as error:
                    failures.append(f"round {number}, {way}: {error}")
                    session.tell(failures[-1])
    finally:
        ram.unlink(missing_ok=True)
    used = versions(lab)
    return Outcome(values(found), used, [_kept(one) for one in found], failures)


def values(found: Sequence[Transfer]) -> dict[str, list[float]]:
    """The measures of every round that has what they need."""
    by_round: dict[int, dict[str, Transfer]] = {}
    for one in found:
        by_round.setdefault(one.round, {})[one.way] = one
    rounds = list(by_round.values())
    return {
        "relay_over_direct": [
            r[PLAIN].rate / r[DIRECT].rate for r in rounds if PLAIN in r and DIRECT in r
        ],
        "hardened_over_plain_throughput": [
            r[TLS].rate / r[PLAIN].rate for r in rounds if TLS in r and PLAIN in r
        ],
        "relay_cpu_s_per_gb": [
            r[PLAIN].cpu_s / (r[PLAIN].carried / 1e9) for r in rounds if PLAIN in r
        ],
        "relay_tls_over_plain": [
            r[TLS].rate / r[PLAIN].rate for r in rounds if TLS in r and PLAIN in r
        ],
    }


def _transfer(lab: Lab, ram: Path, number: int, way: str, tls: Path) -> Transfer:
    here, there = lab.hosts["host1"], lab.hosts["host2"]
    size = ram.stat().st_size
    new = BareQemu(there, [*_machine(size), "-S", "-incoming", "defer"])
    old = BareQemu(
        here,
        [*_machine(size), "-S", "-machine", "memory-backend=pc.ram", "-object",
         f"memory-backend-file,id=pc.ram,size={size},mem-path={ram},share=on"],
    )  # fmt: skip
    pair: relays.RelayPair | None = None
    try:
        for side in (new, old):
            side.open()
            side.set(preempt=False, postcopy=False)
        uri = f"tcp:{there.address}:{next(_ports)}"
        if way != DIRECT:
            pair = relays.start_pair(here, there, tls=tls if way == TLS else None)
            uri = pair.migrate_uri.replace("unix://", "unix:")
        new.monitor.command("migrate-incoming", uri=uri)
        both = [] if pair is None else [pair.source, pair.destination]
        used = {each.pid: -_ready_cpu(each) for each in both}
        old.monitor.command("migrate", uri=uri)
        _, ended = _completed(old, list(used))
        _completed(new, [])
        account = _settled(old)
        return Transfer(
            number,
            way,
            account["ram"]["transferred"],
            account["total-time"] / 1000,
            sum(used[pid] + ended[pid] for pid in used),
        )
    except MonitorError as error:
        raise MonitorError(f"{error}{_last_words(pair)}") from error
    finally:
        old.end()
        new.end()
        if pair is not None:
            pair.stop()


def _last_words(pair: relays.RelayPair | None) -> str:
    if pair is None:
        return ""
    logs = [
        each.seen(each.spec.run_directory) / "relay.log" for each in (pair.source, pair.destination)
    ]
    return "".join(f"\n{log.read_text()[-500:]}" for log in logs if log.exists())


def _machine(size: int) -> list[str]:
    return ["-machine", "pc", "-accel", "tcg", "-m", str(size >> 20)]


def _ready_cpu(running: RunningRelay) -> float:
    """CPU seconds a relay has used once it is ready to carry. Raises TimeoutError."""
    deadline = time.monotonic() + READY_S
    while not running.state().get("link", {}).get("ready"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"relay {running.pid} was not ready after {READY_S:g} s")
        time.sleep(0.05)  # its state file is replaced four times a second
    return cpu_seconds(running.pid)


def _completed(qemu: BareQemu, pids: Sequence[int]) -> tuple[Mapping[str, Any], dict[int, float]]:
    """QEMU's account of its migration, and the CPU seconds of processes that end with it.

    Raises MonitorError where the migration failed.
    """
    used: dict[int, float] = {}
    while True:
        account: dict[str, Any] = qemu.monitor.command("query-migrate")
        for pid in pids:
            with suppress(OSError):
                used[pid] = cpu_seconds(pid)
        if account.get("status") == "completed":
            return account, used
        if account.get("status") in ("failed", "cancelled"):
            raise MonitorError(f"migration {account['status']}: {account.get('error-desc')}")
        time.sleep(0.02)  # an event tells of the end, not what it cost


def _settled(qemu: BareQemu) -> Mapping[str, Any]:
    """The source's account once its total time is in it, which comes after "completed"."""
    while True:
        account: dict[str, Any] = qemu.monitor.command("query-migrate")
        if account.get("total-time", 0) > 0:
            return account
        time.sleep(0.02)


def _kept(one: Transfer) -> dict[str, Any]:
    return {
        "round": one.round,
        "way": one.way,
        "bytes": one.carried,
        "seconds": one.seconds,
        "mb_per_s": round(one.rate / 1e6, 1),
        "cpu_s": round(one.cpu_s, 3),
    }
