# SPDX-License-Identifier: Apache-2.0
"""Two libvirt/QEMU hosts on one machine, up and down."""

import atexit
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import libvirt

from lab import acceleration, endings, image, network, processes
from lab.domain import GuestSpec, domain_xml
from lab.errors import LabError
from lab.guests import Guest
from lab.hosts import Host
from lab.libvirtd import Libvirtd
from lab.namespaces import Holder, require_root
from lab.probe import PORT, Collector, collector_socket
from lab.programs import Program
from lab.releases import Release

HOSTS = ("host1", "host2")
_FIRST_NUMBER = 11


def default_cache() -> Path:
    """``LAB_CACHE``, or the user's cache directory."""
    if "LAB_CACHE" in os.environ:
        return Path(os.environ["LAB_CACHE"]).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "nova-enlightened-lab").resolve()


def default_run() -> Path:
    """``LAB_RUN``, or a directory below /run with a short name: sockets lie deep below it, and a
    socket's path holds 107 bytes.
    """
    return Path(os.environ.get("LAB_RUN", "/run/ne-lab")).resolve()


class Lab:
    """The laboratory. As a context manager it is up inside the block and gone after it.

    ``release`` is the Debian release whose QEMU and libvirt the hosts run: ``bookworm`` (7.2
    and 9.0; this machine's own) or ``trixie`` (10.0 and 11.3). ``cpus`` gives a host
    processors: ``{"host1": {0}, "host2": {1}}``; all of its guests, its libvirtd and what
    ``Host.run`` starts are then bound to them.
    """

    def __init__(
        self,
        *,
        cache: Path | None = None,
        run: Path | None = None,
        release: str = "bookworm",
        link_mbit: float | None = 400.0,
        cpus: Mapping[str, set[int] | frozenset[int]] | None = None,
        progress: image.Progress | None = None,
    ) -> None:
        self.cache = default_cache() if cache is None else Path(cache).resolve()
        self.run_dir = default_run() if run is None else Path(run).resolve()
        self.release = Release.named(release, self.cache)
        self._link_mbit = link_mbit
        self._progress: image.Progress = progress or (lambda _: None)
        bound = {name: frozenset(cpus[name]) for name in cpus} if cpus else {}
        self.control = Holder("ctl", self.run_dir)
        holders = [Holder(name, self.run_dir, bound.get(name)) for name in HOSTS]
        self.hosts = {holder.name: Host(holder, self._libvirtd(holder)) for holder in holders}
        self.link = network.Link((holders[0], holders[1]))
        self.guests: dict[str, Guest] = {}
        self.image: image.GuestImage | None = None
        self.acceleration = ""
        self._numbers: dict[str, int] = {}
        self._collector: Collector | None = None
        self._programs: list[Program] = []
        self._token = ""
        self._keep = False
        self._ended = threading.Lock()
        self._block = ExitStack()

    def _libvirtd(self, holder: Holder) -> Libvirtd:
        release = self.release
        probed = self.cache / f"probed-{release.name}"
        return Libvirtd(holder, release.root, probed, (self.cache, self.run_dir))

    # --- up and down ----------------------------------------------------------------------

    def up(self, *, keep: bool = False) -> "Lab":
        """Start everything. With ``keep`` it stays when this process ends.

        What a dead process left in the run directory is cleared first. Raises LabError where
        another laboratory lives there, or a part does not start (then nothing is left).
        """
        require_root()
        self._claim()
        try:
            self._start(keep)
        except BaseException:
            self.down()
            raise
        if not keep:
            atexit.register(self.down)
        return self

    def _claim(self) -> None:
        state = self._read_state()
        if state is not None:
            if state.get("owner") is None and any(processes.belonging_to(str(state["token"]))):
                raise LabError(f"a laboratory is up in {self.run_dir}: run `python -m lab down`")
            if (owner := _living_owner(state)) is not None:
                raise LabError(f"process {owner} has a laboratory in {self.run_dir}")
            self.down()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._token = str(uuid.uuid4())

    def _start(self, keep: bool) -> None:
        self._keep = keep
        self._write_state()
        self.release.prepare(self._progress)
        self._progress(f"Starting two hosts ({self.release.describe})")
        self.control.start(self._token)
        for host in self.hosts.values():
            host.holder.start(self._token)
            host.make_directory("/run/nova-enlightened")
        self._write_state()
        one, two = (self.hosts[name] for name in HOSTS)
        network.connect(self.control, (one.holder, two.holder))
        self.link.shape(self._link_mbit)
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            answering = [pool.submit(_answer, host) for host in self.hosts.values()]
            self._prepare_image()
            for answer in answering:
                answer.result()
        for host in self.hosts.values():
            host.have_spare_relay()
        self._write_state()
        self._progress(f"Two hosts are up; guests run under {self.acceleration}")

    def _prepare_image(self) -> None:
        self.image = image.build(self.cache, self._progress)
        self.acceleration = acceleration.choose(self.cache, self.image)

    @classmethod
    def running(cls, *, cache: Path | None = None, run: Path | None = None) -> "Lab":
        """The laboratory that ``up(keep=True)`` or ``python -m lab up`` left running.

        Raises LabError where there is none.
        """
        state = cls(cache=cache, run=run)._read_state() or {}
        return cls(cache=cache, run=run, release=state.get("release", "bookworm")).attach()

    def attach(self) -> "Lab":
        """Use what runs in the run directory. Raises LabError where nothing does, or another
        release.
        """
        state = self._read_state()
        if state is None or "image" not in state:
            raise LabError(f"no laboratory is up in {self.run_dir}: run `python -m lab up`")
        if state["release"] != self.release.name:
            raise LabError(f"the laboratory that is up is {state['release']}'s")
        self._token, self._keep = str(state["token"]), True
        for holder in (self.control, *(host.holder for host in self.hosts.values())):
            holder.adopt(state["holders"][holder.name])
        self.link.mbit = state["link_mbit"]
        self.acceleration = state["acceleration"]
        self.image = image.GuestImage(*(Path(path) for path in state["image"]))
        self._numbers = dict(state["numbers"])
        return self

    def down(self, *, force: bool = False) -> int:
        """End every process and remove every file of the laboratory in this run directory,
        also what an earlier, killed process left. Returns how many processes were ended.

        Raises LabError where it is another, living process's, and ``force`` is not given.
        """
        state = self._read_state()
        if state is not None and state["token"] != self._token and not force:
            owner = _living_owner(state)
            if owner is not None:
                raise LabError(f"process {owner} has a laboratory in {self.run_dir}")
        return self._end(state)

    def _end(self, state: Mapping[str, Any] | None) -> int:
        with self._ended:
            atexit.unregister(self.down)
            for program in self._programs:
                program.stop()
            self._programs.clear()
            for host in self.hosts.values():
                host.disconnect()
            if self._collector is not None:
                self._collector.stop()
                self._collector = None
            ended = 0
            for token in {self._token, str(state["token"]) if state else ""} - {""}:
                ended += processes.end_all(token)
            for host in self.hosts.values():
                host.libvirtd.ended()
            self._token = ""
            self.guests.clear()
            if state is not None:
                shutil.rmtree(self.run_dir, ignore_errors=True)
            return ended

    def __enter__(self) -> "Lab":
        with ExitStack() as stack:
            stack.enter_context(endings.orderly())
            self.up()
            stack.callback(self.down)
            self._block = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._block.close()

    # --- guests ---------------------------------------------------------------------------

    @property
    def collector(self) -> Collector:
        """Receives what guests and load generators report; started when first asked for."""
        if self._collector is None:
            sock = self.control.in_network(lambda: collector_socket(network.CONTROL_ADDRESS))
            self._collector = Collector(sock)
            self._collector.start()
        return self._collector

    def guest(
        self, name: str, host: str = "host1", *, start: bool = True, wait: bool = False,
        **wanted: Any,
    ) -> Guest:  # fmt: skip
        """A guest called ``name`` (at most 15 characters) on ``host``; keywords are GuestSpec's.

        It is started unless ``start`` is false, and its workload waited for with ``wait``.
        """
        if self.image is None:
            raise LabError("the laboratory is not up")
        if name in self.guests or not name.isascii() or not 0 < len(name) < 16:
            raise LabError(f"guest name {name!r} is taken or not 1-15 ASCII characters")
        free = set(range(_FIRST_NUMBER, 250)) - set(self._numbers.values())
        number = self._numbers.setdefault(name, min(free))
        spec = GuestSpec(name=name, number=number, **wanted)
        console = self.run_dir / f"console-{name}.log"
        console.unlink(missing_ok=True)
        xml = domain_xml(spec, self.image, self.acceleration, console, PORT)
        guest = Guest(self, spec, self.hosts[host], xml, console)
        self.guests[name] = guest
        self._write_state()
        if start:
            self.collector.probe(name)
            self._progress(f"Starting {name} ({spec.workload}) on {host}")
            try:
                guest.start()
            except libvirt.libvirtError as error:
                self.forget(guest)
                raise LabError(f"{name} on {host}: {error}") from error
            if wait:
                guest.wait_ready()
        return guest

    def redis_load(self, guest: Guest, **wanted: Any) -> Program:
        """Load on a redis guest, started; keywords are ``redis_load.Load``'s. The data set is
        there, and ``guest.probe`` runs, once ``guest.probe.wait_running`` returns.
        """
        words = [guest.address, "--name", guest.name, "--port", str(PORT)]
        for key, value in wanted.items():
            words += [f"--{key.replace('_', '-')}", str(value)]
        self.collector.probe(guest.name)
        program = Program(self.control, "redis_load", words).start()
        self._programs.append(program)
        return program

    def forget(self, guest: Guest) -> None:
        """``guest`` was destroyed: its name and its number are free again."""
        self.guests.pop(guest.name, None)
        self._numbers.pop(guest.name, None)
        self._write_state()

    # --- what is there --------------------------------------------------------------------

    def enter(self, name: str, words: Sequence[str]) -> NoReturn:
        """Become a command, or a shell, inside a host or "ctl"."""
        holder = self.control if name == "ctl" else self.hosts[name].holder
        command = holder.entered(list(words) or [os.environ.get("SHELL", "/bin/sh")])
        os.execvp(command[0], command)

    def status(self) -> dict[str, Any]:
        """Versions, acceleration, link, and every host's guests."""
        hosts = {}
        for name, host in self.hosts.items():
            number, library = host.connection.getVersion(), host.connection.getLibVersion()
            hosts[name] = {
                "qemu": _version(number),
                "libvirt": _version(library),
                "address": host.address,
                "uri": host.libvirt_uri(),
                "guests": host.domains(),
            }
        return {
            "release": self.release.name,
            "acceleration": self.acceleration,
            "link_mbit": self.link.mbit,
            "run": str(self.run_dir),
            "cache": str(self.cache),
            "hosts": hosts,
        }

    @property
    def _state_file(self) -> Path:
        return self.run_dir / "state.json"

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state_file.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) and "token" in state else None

    def _write_state(self) -> None:
        if not self._token:
            return
        owner = {"pid": os.getpid(), "started": processes.started_at(os.getpid())}
        state: dict[str, Any] = {
            "token": self._token,
            "owner": None if self._keep else owner,
            "release": self.release.name,
            "link_mbit": self.link.mbit,
            "numbers": self._numbers,
            "since": time.time(),
        }
        if self.image is not None:
            paths = (self.image.kernel, self.image.initrd, self.image.root)
            state["image"] = [str(path) for path in paths]
            state["acceleration"] = self.acceleration
        if self.control.pid:
            holders = (self.control, *(host.holder for host in self.hosts.values()))
            state["holders"] = {holder.name: holder.describe() for holder in holders}
        partial = self._state_file.with_suffix(".new")
        partial.write_text(json.dumps(state, indent=1))
        partial.rename(self._state_file)


def _answer(host: Host) -> None:
    """Start its libvirtd and have it probe QEMU, which the first time takes many seconds."""
    host.libvirtd.prepare()
    host.libvirtd.start()
    host.libvirtd.wait()
    host.connection.getVersion()
    host.libvirtd.keep_probed()


def _living_owner(state: Mapping[str, Any]) -> int | None:
    """The process whose end ends this laboratory, if there is one and it lives."""
    owner = state.get("owner")
    if owner is None or processes.started_at(owner["pid"]) != owner["started"]:
        return None
    return int(owner["pid"])


def _version(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def _quiet(_: object, error: object) -> None:
    """Keep libvirt from printing errors to stderr: they are raised as well."""


libvirt.registerErrorHandler(_quiet, None)
