#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record real migration streams of one QEMU as test data.

    tools/capture_streams.py --label qemu-7.2 --output tests/data/streams
    tools/capture_streams.py --label qemu-10.0 --output tests/data/streams --root DIRECTORY

Needs root (user faults) and a QEMU; with ``--root`` the QEMU installed below that directory is
run by chroot, for instance one made by

    mmdebstrap --variant=minbase --include=qemu-system-x86 trixie DIRECTORY

A guest of 8 MiB whose firmware is a dozen instructions migrates from one QEMU to another
through a proxy that records every connection, both directions. One directory per label, one
``SCENARIO.CHANNEL.xz`` per recorded direction, and ``manifest.json`` with sizes and versions.
Everything started is ended; the working directory is temporary.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import lzma
import pathlib
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from capture_scenarios import FAST, SCENARIOS, Scenario, firmware

RAM = "8M"
BINARY = "/usr/bin/qemu-system-x86_64"
TIMEOUT = 60.0
ATTEMPTS = 8
RECOVER_AFTER = 90  # bytes of the return path: the first few faults


class Heard:
    """Counts what the destination says, for those who wait for some of it."""

    def __init__(self) -> None:
        self._bytes = 0
        self._changed = threading.Condition()

    def add(self, count: int) -> None:
        """More was said."""
        with self._changed:
            self._bytes += count
            self._changed.notify_all()

    def wait(self, wanted: int) -> None:
        """Wait until at least ``wanted`` bytes were said."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._bytes >= wanted, TIMEOUT):
                raise RuntimeError(f"the destination said {self._bytes} bytes, not {wanted}")


class Missed(Exception):
    """The migration went another way than the scenario wants; timing decides."""


class Qmp:
    """QEMU's control connection; keeps the events it meets while waiting for answers."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(TIMEOUT)
        self._lines = connection.makefile("rb")
        self._events: collections.deque[dict[str, Any]] = collections.deque()
        self._read()
        self.ask("qmp_capabilities")

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command; its result."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read()
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer)

    def _event(self, name: str) -> dict[str, Any]:
        while True:
            event = self._events.popleft() if self._events else self._read()
            if event.get("event") == name:
                data: dict[str, Any] = event["data"]
                return data

    def wait_for_status(self, wanted: str) -> None:
        """Wait until the migration is in this status; fail if it ends in another."""
        while (status := self._event("MIGRATION")["status"]) != wanted:
            if status in ("failed", "cancelled", "completed"):
                raise Missed(f"{status}, not {wanted}: {self.ask('query-migrate')}")

    def wait_for_pass(self, wanted: int) -> None:
        """Wait until the migration goes over RAM for the ``wanted``-th time."""
        while self._event("MIGRATION_PASS")["pass"] < wanted:
            pass

    def enable(self, scenario: Scenario) -> None:
        """Switch on the scenario's capabilities, and migration events; set its parameters."""
        names = (*scenario.capabilities, "events")
        states = [{"capability": name, "state": True} for name in names]
        self.ask("migrate-set-capabilities", capabilities=states)
        self.ask("migrate-set-parameters", **scenario.parameters)


class Connection:
    """Carries one connection between two sockets and keeps every byte of it."""

    def __init__(self, source: socket.socket, destination: socket.socket, heard: Heard) -> None:
        self.forward = bytearray()
        self.back = bytearray()
        self._sockets = (source, destination)
        self._heard = heard
        self._pumps = (
            threading.Thread(target=self._pump, args=(source, destination, self.forward)),
            threading.Thread(target=self._pump, args=(destination, source, self.back)),
        )
        for pump in self._pumps:
            pump.start()

    def _pump(self, here: socket.socket, there: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                kept += data
                there.sendall(data)
                if kept is self.back:
                    self._heard.add(len(data))
            there.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break both directions."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Wait until both directions have ended."""
        for pump in self._pumps:
            pump.join(TIMEOUT)
        self.cut()
        for end in self._sockets:
            end.close()


class Recorder:
    """Listens on one unix socket and carries what comes to another."""

    def __init__(self, listen: pathlib.Path, connect: pathlib.Path) -> None:
        self.heard = Heard()
        self.connections: list[Connection] = []
        self._connect = str(connect)
        self._listener = socket.socket(socket.AF_UNIX)
        listen.unlink(missing_ok=True)
        self._listener.bind(str(listen))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        self._closed = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                source, _ = self._listener.accept()
                destination = socket.socket(socket.AF_UNIX)
                destination.connect(self._connect)
                self.connections.append(Connection(source, destination, self.heard))

    def close(self, cut: bool = False) -> None:
        """Take no more connections; cut those there are, or wait for their ends."""
        if self._closed:
            return
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self.connections:
            if cut:
                connection.cut()
            connection.finish()


class Bench:
    """Where the two QEMUs run: this system, or one below a directory."""

    def __init__(self, root: pathlib.Path | None, directory: pathlib.Path) -> None:
        self._root = root
        self._directory = directory
        self.path("firmware").write_bytes(firmware())

    def path(self, name: str) -> pathlib.Path:
        """A file of the working directory."""
        return self._directory / name

    def inside(self, name: str) -> str:
        """The same as QEMU sees it."""
        path = self.path(name)
        return str(path) if self._root is None else f"/{path.relative_to(self._root)}"

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs QEMU."""
        prefix = [] if self._root is None else ["chroot", str(self._root)]
        return [*prefix, BINARY, *arguments]

    def version(self) -> str:
        """What QEMU says it is."""
        output = subprocess.check_output(self.command("--version"), text=True)
        return output.splitlines()[0].removeprefix("QEMU emulator version ")

    @contextlib.contextmanager
    def qemu(self, scenario: Scenario, *more: str) -> Iterator[Qmp]:
        """One QEMU, killed in the end."""
        own = [part.format(directory=self.inside(".")) for part in scenario.arguments]
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                self.command(
                    "-M", "pc", "-accel", "tcg", "-m", RAM, "-nodefaults", "-display", "none",
                    "-bios", self.inside("firmware"), *own,
                    "-chardev", f"socket,id=qmp,fd={theirs.fileno()}",
                    "-mon", "chardev=qmp,mode=control", *more,
                ),
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            with contextlib.closing(Qmp(ours)) as qmp:
                yield qmp
        finally:
            process.kill()
            process.wait()

    def record(self, scenario: Scenario) -> dict[str, bytes]:
        """Run one scenario; the bytes of each recorded direction by channel name."""
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self.qemu(scenario))
            source.enable(scenario)
            if scenario.to_file:
                source.ask("migrate", uri=f"file:{self.inside('stream')}")
                source.wait_for_status("completed")
                return {"main": self.path("stream").read_bytes()}
            destination = stack.enter_context(self.qemu(scenario, "-incoming", "defer"))
            destination.enable(scenario)
            recorders = [self._start(source, destination, "")]
            try:
                self._drive(scenario, source, destination, recorders)
            except BaseException:
                recorders[-1].close(cut=True)
                raise
            recorders[-1].close()
            return named_channels(scenario, recorders)

    def _start(self, source: Qmp, destination: Qmp, again: str) -> Recorder:
        to, via = f"to{again}", f"via{again}"
        incoming = "migrate-recover" if again else "migrate-incoming"
        destination.ask(incoming, uri=f"unix:{self.inside(to)}")
        recorder = Recorder(self.path(via), self.path(to))
        source.ask("migrate", uri=f"unix:{self.inside(via)}", resume=bool(again))
        return recorder

    def _drive(
        self, scenario: Scenario, source: Qmp, destination: Qmp, recorders: list[Recorder]
    ) -> None:
        if scenario.passes:
            source.wait_for_pass(scenario.passes)
            source.ask("migrate-set-parameters", **FAST)
        if scenario.postcopy:
            source.wait_for_status("active")
            source.ask("migrate-start-postcopy")
            source.wait_for_status("postcopy-active")
        if scenario.recover:
            recorders[0].heard.wait(RECOVER_AFTER)
            recorders[0].close(cut=True)
            source.wait_for_status("postcopy-paused")
            destination.wait_for_status("postcopy-paused")
            recorders.append(self._start(source, destination, "-again"))
        source.wait_for_status("completed")
        destination.wait_for_status("completed")


def named_channels(scenario: Scenario, recorders: list[Recorder]) -> dict[str, bytes]:
    """Channel name to bytes: ``main``, ``preempt``, ``resumed`` and so on; ``-back`` returns."""
    second = "multifd" if "multifd" in scenario.capabilities else "preempt"
    found: dict[str, bytes] = {}
    for attempt, recorder in enumerate(recorders):
        for index, connection in enumerate(recorder.connections):
            name = ("resumed" if attempt else "main") if index == 0 else second
            name += "-again" if attempt and index else ""
            name += f"-{index}" if index > 1 else ""
            found[name] = bytes(connection.forward)
            found[f"{name}-back"] = bytes(connection.back)
    return {name: data for name, data in found.items() if data}


def record_patiently(bench: Bench, scenario: Scenario) -> dict[str, bytes]:
    """Record, again if the migration was over before it could be cut."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(Missed):
            return bench.record(scenario)
    return bench.record(scenario)


def save(output: pathlib.Path, name: str, data: bytes) -> dict[str, Any]:
    """Write one compressed stream; its entry in the manifest."""
    packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    (output / f"{name}.xz").write_bytes(packed)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main() -> None:
    """Record every scenario that this QEMU knows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", required=True, help="name of the directory to fill")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--root", type=pathlib.Path, help="run QEMU below this directory")
    parser.add_argument("--only", help="record only this scenario")
    options = parser.parse_args()
    output = options.output / options.label
    output.mkdir(parents=True, exist_ok=True)
    root = options.root.resolve() if options.root else None
    listing = output / "manifest.json"
    known = json.loads(listing.read_text()) if listing.exists() else {}
    streams = known.get("streams", {})
    for scenario in SCENARIOS:
        parent = root / "tmp" if root else None
        with tempfile.TemporaryDirectory(prefix="capture-", dir=parent) as directory:
            bench = Bench(root, pathlib.Path(directory))
            version = bench.version()
            if options.only not in (None, scenario.name):
                continue
            if int(version.split(".")[0]) not in scenario.versions:
                continue
            for channel, data in record_patiently(bench, scenario).items():
                name = f"{scenario.name}.{channel}"
                streams[name] = save(output, name, data[: scenario.keep])
                print(f"{options.label}/{name}: {len(data)} bytes")
    listing.write_text(
        json.dumps({"qemu": version, "streams": dict(sorted(streams.items()))}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
