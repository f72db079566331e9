# SPDX-License-Identifier: Apache-2.0
"""One server that streams, looked after until it needs nothing but its own disk.

A thread for each. What it does next it sees from the player and from QEMU, never from what it
remembers, so that an agent that was restarted goes on with what is there.
"""

import contextlib
import dataclasses
import enum
import json
import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from nova_enlightened import exception, whole_file
from nova_enlightened.host import clones, players, streaming
from nova_enlightened.host.connection import translated
from nova_enlightened.host.players import RunningPlayer
from nova_enlightened.host.spare_monitor import SpareMonitor
from nova_enlightened.knowledge import domain_xml

LOG = logging.getLogger(__name__)

LOOK_S: Final = 0.05
"""While nobody executes yet."""
FOLLOW_S: Final = 0.5
GONE_S: Final = 600.0
"""A server that libvirt knows nothing of for so long is gone, though nobody said so."""
PULL_S: Final = 86400.0
AGAIN_S: Final = 5.0
RECOVERIES: Final = 20
"""In a row, each of a player that has ended again before it brought anything."""
ORDER: Final = "order.json"


class Phase(enum.StrEnum):
    """How far a server is, as Nova's driver asks."""

    NONE = "none"
    """This host streams nothing for it."""
    BUFFERING = "buffering"
    """What it needs first is fetched."""
    PLAYING = "playing"
    """QEMU loads its devices."""
    STREAMING = "streaming"
    """It executes, and not all of it is here."""
    PULLING = "pulling"
    """All is here, and the disk is made whole."""
    DONE = "done"
    """It needs nobody any more."""
    FAILED = "failed"
    """It does not execute, and will not."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What Nova wants of a player besides playing; kept beside it.

    :param memory: the domain waits for its memory; otherwise it boots, and its disks are served.
    :param identity: what the clone is told, once it is to play; see `clones`.
    :param until: when it has to execute, seconds since the epoch.
    :param trace: where a trace of the run is kept, or None.
    """

    instance: str
    memory: bool
    identity: dict[str, Any] | None = None
    until: float = 0.0
    trace: str | None = None

    def save(self, directory: str) -> None:
        """Keep it in a player's run directory. Raises OSError."""
        whole_file.write(pathlib.Path(directory, ORDER), json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, directory: str) -> Self:
        """:raises PlayerGone: there is none."""
        try:
            return cls(**json.loads(pathlib.Path(directory, ORDER).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise exception.PlayerGone(f"no order in {directory}: {error}") from error


class Run:
    """One server's. Made without I/O.

    :param domain: finds the server's domain, running or not; raises ``LibvirtError``.
    :param admit: lets QEMU use the sockets of a player that was started.
    :param clone_timeout: seconds for the guest to say that it knows who it is.
    :param monitor: QEMU's second monitor, open; the run's from now on.
    :param learn_s: seconds for which a learning run fetches only what is asked for.
    """

    def __init__(
        self,
        player: RunningPlayer,
        order: Order,
        domain: Callable[[], Any],
        admit: Callable[[RunningPlayer], None],
        clone_timeout: float,
        monitor: SpareMonitor | None = None,
        learn_s: float = 0.0,
    ) -> None:
        self.order = order
        self.player = player
        self.words = ""
        self._domain = domain
        self._admit = admit
        self._clone_timeout = clone_timeout
        self._monitor = monitor
        self._learn_s = learn_s
        self._phase = Phase.BUFFERING if order.memory else Phase.STREAMING
        self._error: str | None = None
        self._ended = threading.Event()
        self._seen = time.monotonic()
        self._recoveries = 0
        self._thread = threading.Thread(target=self._run, name="appliance", daemon=True)

    # -- asked by others ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def play(self, order: Order) -> None:
        """The domain waits for its memory now. Raises OSError where it cannot be noted."""
        order.save(self.player.spec.run_directory)
        self.order = order

    def state(self) -> dict[str, Any]:
        """See ``rpc.HostAPI.appliance_state``."""
        told = self.player.state()
        error = self._error
        if self._phase in (Phase.BUFFERING, Phase.PLAYING) and told.get("phase") == "failed":
            error = error or str(told.get("error"))
        phase = Phase.FAILED if error and self._phase is not Phase.DONE else self._phase
        percent = 100.0 if phase is Phase.DONE else float(told.get("percent") or 0.0)
        return {"phase": phase.value, "percent": percent, "error": error, "words": self.words}

    @property
    def phase(self) -> Phase:
        """How far it is."""
        return self._phase

    def end(self) -> None:
        """Let go of everything, the player with it."""
        self._ended.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(FOLLOW_S * 4)
        self._keep_trace()
        self._remove()

    def let_go(self) -> None:
        """End the thread; the player goes on by itself."""
        self._ended.set()
        self._close_monitor()

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self.order.memory and not self.player.state().get("executing"):
                self._begin()
            elif self.order.memory:
                self._executes()
            self._follow()
        except exception.EnlightenedError as error:
            self._fail(str(error))
        except Exception as error:
            LOG.exception("Streaming %s", self.order.instance)
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        if not self._ended.is_set():
            LOG.error("Server %s: %s", self.order.instance, why)
        self._error = why
        self._phase = Phase.FAILED

    def _begin(self) -> None:
        """From a player that fetches to a guest that executes."""
        self._await(self._is_ordered)
        # Until what is needed first is here.
        self._await(lambda: bool(self.player.state().get("ready")) or self._look_out())
        if self._ended.is_set():
            return
        self._phase = Phase.PLAYING
        domain = self._domain()
        if streaming.migration_status(domain) == "none":
            capability = [{"capability": "postcopy-ram", "state": True}]
            streaming.qmp(domain, "migrate-set-capabilities", capabilities=capability)
            uri = f"unix:{self.player.spec.qemu_socket}"
            streaming.qmp(domain, "migrate-incoming", uri=uri)
        self.player.play()
        self._await(lambda: _loaded(domain) or self._look_out())
        if not self._ended.is_set():
            self._introduce(domain)

    def _is_ordered(self) -> bool:
        if self.order.identity is not None:
            return True
        if time.monotonic() - self._seen > GONE_S:
            self._remove()
            raise exception.StreamingError("nobody came to have it played")
        return False

    def _look_out(self) -> bool:
        """:raises StreamingError: it will not execute."""
        state = self.player.state()
        if state.get("phase") == "failed":
            raise exception.StreamingError(str(state.get("error")))
        if not self.player.alive:
            raise exception.StreamingError(f"its player ended, see {self.player.spec.log}")
        if self.order.until and time.time() > self.order.until:
            phase, percent = state.get("phase", "starting"), state.get("percent", 0)
            trouble = f": {state['error']}" if state.get("error") else ""
            raise exception.StreamingError(
                f"not in time: {phase}, {percent} % of what is needed first{trouble}"
            )
        return False

    def _introduce(self, domain: Any) -> None:
        """Let the guest execute, and tell it who it is before others hear of it."""
        with translated("the domain's XML"):
            channel = clones.channel(domain.XMLDesc())
        quiet = channel is not None and self._clone_timeout > 0
        if quiet:
            # Not before the devices are loaded: they bring their links' state with them.
            clones.set_links(domain, up=False)
        with translated("starting its processors"):
            domain.resume()
        self._executes()
        if channel is not None and quiet:
            self._tell(domain, channel)

    def _executes(self) -> None:
        self._phase = Phase.STREAMING
        self.words = _told(self.player.state())
        LOG.info("Server %s executes: %s", self.order.instance, self.words)

    def _tell(self, domain: Any, channel: str) -> None:
        """In a thread of its own: the player may need looking after meanwhile."""
        identity = self.order.identity or {}
        deadline = time.monotonic() + self._clone_timeout

        def talk() -> None:
            try:
                said = clones.tell(channel, identity, deadline, self._ended)
                LOG.info("Server %s was told who it is: %s", self.order.instance, said)
            except exception.EnlightenedError as error:
                LOG.warning(
                    "Server %s may believe to be the one that was captured: %s",
                    self.order.instance, error,
                )  # fmt: skip
            try:
                clones.set_links(domain, up=True)
            except exception.EnlightenedError as error:
                LOG.error("Server %s has no link: %s", self.order.instance, error)

        threading.Thread(target=talk, name="clone", daemon=True).start()

    def _follow(self) -> None:
        """From a guest that executes to one that needs nobody."""
        while not self._ended.wait(FOLLOW_S):
            try:
                if self._turn():
                    return
                self._error = None
            except (exception.StreamingError, exception.PlayerError) as error:
                self._recoveries += 1
                LOG.warning("Server %s: %s", self.order.instance, error)
                self._error = str(error)
                if self._recoveries > RECOVERIES or self._ended.wait(AGAIN_S):
                    return
            except exception.LibvirtError as error:
                LOG.debug("Server %s: %s", self.order.instance, error)
                if time.monotonic() - self._seen > GONE_S:
                    LOG.warning("Server %s is gone", self.order.instance)
                    self._remove()
                    self._phase = Phase.NONE
                    return

    def _turn(self) -> bool:
        """Do what is due; whether nothing will be any more."""
        domain = self._domain()
        self._seen = time.monotonic()
        with translated("the domain's state"):
            active = bool(domain.isActive())
        state = self.player.state()
        if not self.player.alive:
            self._replace(domain, active)
            return False
        if state.get("progress"):
            self._recoveries = 0
        if not active:
            self._forget_memory()
            return False
        if _learned(state, self._learn_s):
            LOG.info("Server %s has been learned from: all of it is fetched", self.order.instance)
            self.player.fill()
        complete = state.get("phase") == "complete"
        if self.order.memory and complete:
            complete = streaming.settle(domain, self.player)
        return complete and self._pull(domain)

    def _replace(self, domain: Any, active: bool) -> None:
        """Another player for one that ended. An ended one of a domain that is off is not missed:
        before it starts, Nova asks for one.
        """
        if not active:
            self._phase = Phase.STREAMING
            return
        if self.order.memory:
            self.player = streaming.recover(domain, self.player, monitor=self._monitor)
        else:
            self.player = players.start(self.player.spec)
            streaming.resume_after_errors(domain)
        self._admit(self.player)
        LOG.info("Server %s has another player", self.order.instance)

    def _forget_memory(self) -> None:
        """The domain was stopped: what memory it had is of no use."""
        if self.order.memory and self.player.state().get("executing"):
            self._keep_trace()
            self.player.stop(FOLLOW_S * 10)
            self.order = dataclasses.replace(self.order, memory=False)
            self.player = players.start(players.without_memory(self.player.spec))
            self.order.save(self.player.spec.run_directory)
            self._admit(self.player)

    def _pull(self, domain: Any) -> bool:
        """Make the disks whole; whether they are."""
        self._phase = Phase.PULLING
        self._keep_trace()
        for target in self.player.spec.nbd_sockets:
            if _lies_on_export(domain, target):
                streaming.flatten(domain, target, PULL_S)
            if _lies_on_export(domain, target):
                raise exception.StreamingError(f"disk {target} is not whole")
        LOG.info("Server %s has all its memory and disk", self.order.instance)
        self._remove()
        self._phase = Phase.DONE
        return True

    def _keep_trace(self) -> None:
        """Of a run that began with its memory: what a boot reads is no start of the appliance."""
        executed = self.order.memory and self.player.state().get("executing")
        if self.order.trace is None or not executed:
            return
        try:
            pathlib.Path(self.order.trace).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.player.trace(), self.order.trace)
        except (OSError, exception.PlayerError) as error:
            LOG.warning("Trace of %s: %s", self.order.instance, error)

    def _await(self, there: Callable[[], bool]) -> None:
        while not self._ended.is_set() and not there():
            self._ended.wait(LOOK_S)

    def _remove(self) -> None:
        """The player, its sockets, its directory."""
        spec = self.player.spec
        self._close_monitor()
        self.player.stop(FOLLOW_S * 10)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.player.pid, os.WNOHANG)
        for path in (*spec.nbd_sockets.values(), spec.qemu_socket):
            if path is not None:
                pathlib.Path(path).unlink(missing_ok=True)
        shutil.rmtree(spec.run_directory, ignore_errors=True)


def _loaded(domain: Any) -> bool:
    """Whether QEMU has its devices, and would execute."""
    status = streaming.qmp(domain, "query-status")["status"]
    return status in ("paused", "running")


def _learned(state: Mapping[str, Any], seconds: float) -> bool:
    """Whether a learning run has executed for so long, and goes on as one."""
    since = state.get("executing_since")
    if since is None or not (state.get("progress") or {}).get("learning"):
        return False
    return bool(state["monotonic"] - since >= seconds)


def _lies_on_export(domain: Any, target: str) -> bool:
    with translated("the domain's XML"):
        xml = domain.XMLDesc()
    for disk in domain_xml.root(xml).iterfind("devices/disk"):
        found = disk.find("target")
        if found is not None and found.get("dev") == target:
            return disk.find(".//backingStore/source[@protocol='nbd']") is not None
    return False


def _told(state: Mapping[str, Any]) -> str:
    progress = state.get("progress") or {}
    store, cache = (progress.get(f"bytes_from_{where}", 0) for where in ("store", "cache"))
    return f"{store / 1e6:.1f} MB from the store, {cache / 1e6:.1f} MB from this host's cache"
