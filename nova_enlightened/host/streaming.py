# SPDX-License-Identifier: Apache-2.0
"""Starts a libvirt domain from a stored appliance, and keeps it going.

libvirt starts QEMU with ``-incoming defer``: a process that waits. Through libvirt's QEMU monitor
it is told to expect a post-copy migration, and where to listen; a player then is the migration's
source. No job of libvirt's runs meanwhile: suspend, resume, statistics and attaching work. In
this order:

    player = players.start(spec)                    # buffers while the domain is made
    make_overlay(path, target, socket, size)        # for each disk
    domain = connection.createXML(streamed_xml(...))
    play(domain, player)
    wait_executing(domain, player, 60.0)
    ...
    settle(domain, player)                          # once state()["phase"] is "complete"

and ``recover(domain, player)`` where the player was lost in between.
"""

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import libvirt

from nova_enlightened import exception
from nova_enlightened.host import players, qemu_monitor
from nova_enlightened.host.connection import translated
from nova_enlightened.host.players import RunningPlayer
from nova_enlightened.host.spare_monitor import SpareMonitor
from nova_enlightened.host.streamed_xml import nbd_uri
from nova_enlightened.transfer.player_state import Phase

LOG = logging.getLogger(__name__)

LOOK_S: Final = 0.02
PAUSE_S: Final = 10.0
"""How long QEMU may take to notice that its player is gone."""
STATUS_S: Final = 0.25
"""How long its main loop may take to say how its migration stands; otherwise it is busy."""
RECOVER_S: Final = 60.0
RESUMES: Final = 50
QEMU_IMG_S: Final = 60.0

_RECOVERABLE: Final = frozenset({"postcopy-paused"})
_UNDER_WAY: Final = frozenset({"postcopy-active", "postcopy-recover", "postcopy-recover-setup"})


def make_overlay(path: str, target: str, socket: str, size: int) -> None:
    """Make the qcow2 file that takes a domain's writes, on the export of an appliance's disk.

    The export need not answer yet.

    :param path: of the file; it must not exist.
    :param size: bytes, at least the disk's.
    :raises StreamingError: it could not be made.
    """
    if os.path.exists(path):
        raise exception.StreamingError(f"{path} exists")
    words = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw"]
    try:
        subprocess.run(
            [*words, "-b", nbd_uri(target, socket), path, str(size)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=QEMU_IMG_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise exception.StreamingError(f"{path}: {said}") from error


def play(domain: Any, player: RunningPlayer) -> None:
    """Have a domain that waits for an incoming migration filled by its player.

    Answers at once; the player starts it when enough is there. A domain that libvirt has as
    paused is resumed, so that it executes then.

    :param domain: ``libvirt.virDomain``, started with ``-incoming defer``.
    :raises StreamingError: QEMU declines, or the player has ended; with the player's words.
    :raises PlayerError: the player has no memory to play.
    """
    path = player.spec.qemu_socket
    if path is None:
        raise exception.PlayerError("this player has no memory to play")
    _set_postcopy(domain, on=True)
    qmp(domain, "migrate-incoming", uri=f"unix:{path}")
    with translated("starting its processors when they have what they need"):
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
    try:
        player.play()
    except exception.PlayerGone as error:
        _raise_failed(player)
        raise exception.StreamingError(f"{error}; see {player.spec.log}") from error


def _raise_failed(player: RunningPlayer) -> None:
    """:raises StreamingError: the player says why it cannot start its VM."""
    state = player.state()
    if state.get("phase") == Phase.FAILED:
        raise exception.StreamingError(str(state["error"]))


def wait_executing(
    domain: Any,
    player: RunningPlayer,
    seconds: float,
    tell: Callable[[Mapping[str, Any]], None] = lambda state: None,
) -> None:
    """Until the domain executes.

    :param tell: called with each new state of the player meanwhile.
    :raises StreamingError: it will not, or not within so many seconds; the message has the
        player's words, with the chunk and the place that cannot be had.
    """
    deadline = time.monotonic() + seconds
    told: Mapping[str, Any] = {}
    while True:
        state = player.state()
        if state and state != told:
            told = state
            tell(state)
        if state.get("executing") and qmp(domain, "query-status")["status"] == "running":
            return
        _raise_failed(player)
        if not player.alive:
            _raise_failed(player)  # it may have said so just before its end
            raise exception.StreamingError(f"its player ended, see {player.spec.log}")
        if time.monotonic() > deadline:
            phase, percent = state.get("phase", "starting"), state.get("percent", 0)
            raise exception.StreamingError(
                f"it does not execute after {seconds:g} s: {phase}, {percent} % of what that needs"
            )
        time.sleep(LOOK_S)  # a state file has nothing to wait on


def settle(domain: Any, player: RunningPlayer) -> bool:
    """Make an ordinary domain of one whose memory is all there.

    Without this it could not be saved: QEMU would go into post-copy. May be called any time,
    and again.

    :returns: whether it was done; False while QEMU still receives.
    """
    if migration_status(domain) != "completed":
        return False
    _set_postcopy(domain, on=False)
    return True


def recover(
    domain: Any,
    player: RunningPlayer,
    prefix: Sequence[str] = (),
    monitor: SpareMonitor | None = None,
) -> RunningPlayer:
    """Take up a domain whose player was lost; it goes on from where it was.

    :param player: the one that is gone; nothing happens to one that lives but its end.
    :param prefix: as of :func:`.players.start`.
    :param monitor: QEMU's second one. Without it, or where QEMU is not connected to it, QEMU is
        asked through libvirt: then nobody can help one that waits for a page itself.
    :returns: the new player, which QEMU has accepted.
    :raises StreamingError: QEMU cannot go on: it had not begun to execute (then the domain is
        gone, or to be started anew), or declines.
    :raises PlayerError: the new player could not be started.
    """
    player.stop(PAUSE_S)
    uri = f"unix:{player.spec.qemu_socket}"
    status = _listening_again(domain, uri, monitor)
    if status == "completed":
        if not player.spec.nbd_sockets:
            return player
        LOG.info("It has all its memory: its disks only are served again")
        spec = players.without_memory(player.spec)
        new = players.start(spec, prefix, player.seen)
    elif status in _RECOVERABLE:
        new = players.resumed(player, prefix)
        _until_taken_up(new)
    else:
        raise exception.StreamingError(f"QEMU cannot go on: its migration is {status!r}")
    reconnect_disks(domain, new)
    resume_after_errors(domain)
    return new


def _listening_again(domain: Any, uri: str, monitor: SpareMonitor | None) -> str:
    """QEMU's migration status, once it has noticed that nobody speaks to it any more. Where that
    can be recovered it listens again.

    :raises StreamingError: QEMU declines.
    """
    if monitor is not None:
        try:
            return _recover_out_of_band(monitor, uri)
        except exception.MonitorSilent as error:
            LOG.warning("%s; it is asked through libvirt", error)
    status = _when_paused(lambda: migration_status(domain))
    if status in _RECOVERABLE:
        qmp(domain, "migrate-recover", uri=uri)
    return status


def _recover_out_of_band(monitor: SpareMonitor, uri: str) -> str:
    """The same through QEMU's second monitor.

    :raises MonitorSilent: QEMU is not connected to it, or has not paused in time.
    """
    deadline = time.monotonic() + PAUSE_S
    patience = STATUS_S
    while declined := monitor.listen_again(uri):
        if time.monotonic() > deadline:
            raise exception.StreamingError(declined)
        if time.monotonic() > deadline - PAUSE_S + patience:
            # It has paused long ago, or has all its memory: its main loop tells, and waits for no
            # page then. QEMU queues eight such questions, and takes no others behind them.
            patience *= 2
            with contextlib.suppress(exception.MonitorSilent):
                told = monitor.ask("query-migrate", patience, out_of_band=False)
                status = str(told.get("status", "none")) if isinstance(told, dict) else "none"
                if status not in _UNDER_WAY | _RECOVERABLE:
                    return status
        time.sleep(LOOK_S)
    return "postcopy-paused"


def _when_paused(look: Callable[[], str]) -> str:
    deadline = time.monotonic() + PAUSE_S
    while (status := look()) in _UNDER_WAY:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    return status


def _until_taken_up(player: RunningPlayer) -> None:
    deadline = time.monotonic() + RECOVER_S
    while True:
        state = player.state()
        step = state.get("memory", {}).get("step")
        if step in ("executing", "all said", "ended"):
            return
        if state.get("phase") == Phase.FAILED or not player.alive:
            why = state.get("error") or f"its player ended, see {player.spec.log}"
            raise exception.StreamingError(f"it was not taken up: {why}")
        if time.monotonic() > deadline:
            raise exception.StreamingError(
                f"it was not taken up in {RECOVER_S:g} s: {step or 'not connected'}"
            )
        time.sleep(LOOK_S)


def reconnect_disks(domain: Any, player: RunningPlayer) -> None:
    """Have QEMU connect to the disks' exports again before its guest needs them.

    QEMU (``block/nbd.c``, without ``reconnect-delay``, which libvirt cannot set) notices that an
    export is gone when it is used next, and begins to connect at the use after that; each of them
    fails. So they are made here, until the player has its clients.

    :raises StreamingError: QEMU does not connect.
    :raises PlayerError: the player is gone.
    """
    exports = set(player.spec.nbd_sockets.values())
    nodes = [
        str(node["node-name"])
        for node in qmp_list(domain, "query-named-block-nodes")
        if node.get("drv") == "nbd" and any(path in str(node.get("file")) for path in exports)
    ]
    deadline = time.monotonic() + RECOVER_S
    while nodes and ((clients := _clients(player)) is None or clients < len(nodes)):
        if time.monotonic() > deadline:
            raise exception.StreamingError("QEMU does not connect to its disks again")
        for node in nodes if clients is not None else ():
            with _as_streaming():
                qemu_monitor.ask_in_words(domain, f'qemu-io {node} "read -q 0 512"')
        time.sleep(LOOK_S)


def _clients(player: RunningPlayer) -> int | None:
    """How many connections its exports have; None while its interpreter starts.

    :raises PlayerGone: it has ended.
    """
    try:
        return int(player.ask("status").get("disks", {}).get("clients", 0))
    except exception.PlayerGone:
        if not player.alive:
            raise
        return None


def resume_after_errors(domain: Any) -> bool:
    """Let a domain go on that stopped because a disk's export was gone; see
    :func:`.streamed_xml.streamed_xml`. A domain that somebody else paused stays so.

    :returns: whether it had stopped.
    :raises StreamingError: it stops again and again.
    """
    stopped = False
    for _ in range(RESUMES):
        if qmp(domain, "query-status")["status"] != "io-error":
            return stopped
        stopped = True
        try:
            domain.resume()
        except libvirt.libvirtError as error:
            LOG.debug("libvirt has not heard of it yet: %s", error)
        time.sleep(LOOK_S)
    raise exception.StreamingError("it stops for errors of its disk again and again")


def flatten(domain: Any, target: str, seconds: float) -> None:
    """Have a disk no longer depend on its export: QEMU copies what is missing into the overlay.

    :raises StreamingError: that failed, or was not done in time (then it is given up).
    """
    with translated(f"pulling disk {target}"):
        domain.blockPull(target, 0, 0)
        deadline = time.monotonic() + seconds
        while domain.blockJobInfo(target, 0):
            if time.monotonic() > deadline:
                domain.blockJobAbort(target, 0)
                raise exception.StreamingError(f"disk {target} was not whole after {seconds:g} s")
            time.sleep(LOOK_S * 5)


def migration_status(domain: Any) -> str:
    """What QEMU says of the migration it receives: ``postcopy-active``, ``postcopy-paused``,
    ``completed`` and so on; ``none`` before it began.

    :raises StreamingError: the domain does not run.
    """
    return str(qmp(domain, "query-migrate").get("status", "none"))


def _set_postcopy(domain: Any, *, on: bool) -> None:
    wanted = [{"capability": "postcopy-ram", "state": on}]
    qmp(domain, "migrate-set-capabilities", capabilities=wanted)


def qmp(domain: Any, command: str, **arguments: Any) -> dict[str, Any]:
    """What QEMU answers through libvirt.

    :raises StreamingError: it declines, or does not run.
    """
    with _as_streaming():
        found: dict[str, Any] = qemu_monitor.ask(domain, command, **arguments)
    return found


def qmp_list(domain: Any, command: str, **arguments: Any) -> list[dict[str, Any]]:
    """The same of a command that answers with a list."""
    with _as_streaming():
        found: list[dict[str, Any]] = qemu_monitor.ask(domain, command, **arguments)
    return found


@contextlib.contextmanager
def _as_streaming() -> Iterator[None]:
    try:
        yield
    except exception.LibvirtError as error:
        raise exception.StreamingError(str(error)) from error
