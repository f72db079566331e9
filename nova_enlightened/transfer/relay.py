# SPDX-License-Identifier: Apache-2.0
"""What both relays share: QEMU's sockets on one side, the link on the other, one event loop.

Bytes are read from QEMU only when the link has room for them, and acknowledged to the peer only
when QEMU has taken them; so a slow side stops the other QEMU and memory stays bounded.
"""

import logging
import os
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.stream import link as events
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer.control import ControlServer
from nova_enlightened.transfer.link import Link
from nova_enlightened.transfer.link_events import (
    Broken,
    LinkOptions,
    Lost,
    PeerAbsent,
    PeerReady,
    PeerTurnedAway,
    Refused,
)
from nova_enlightened.transfer.qemu_socket import QemuSocket
from nova_enlightened.transfer.spec import RelaySpec
from nova_enlightened.transfer.wake import Wake

LOG = logging.getLogger(__name__)

MAIN: Final = 0
"""Number of the channel that carries the return path; QEMU opens it first."""
STATE_INTERVAL_S: Final = 0.5
UNUSED_S: Final = 120.0
"""A relay nobody has used for this long was forgotten by whoever started it."""
SMALL_READ: Final = 32 * 1024
"""Room below which reading waits for more, lest every page becomes a frame of its own."""


class Relay:
    """One side; subclasses say what is particular to it.

    :param listener: inherited listening socket, or None to bind what the specification says.
    """

    role: Role

    def __init__(self, spec: RelaySpec, listener: socket.socket | None) -> None:
        self.spec = spec
        self.error: str | None = None
        self._selector = selectors.DefaultSelector()
        self._channels: dict[int, QemuSocket] = {}
        self._watched: dict[QemuSocket, int] = {}
        self._stopping: str | None = None
        self._began = time.monotonic()
        self._state_due = 0.0
        self._read_at: float | None = None  # when QEMU is looked at again
        self.wake = Wake()
        self._control = ControlServer(spec.control, self._calls(), self._selector)
        self._listener = listener
        self._link = Link(
            self.role,
            spec.migration,
            bytes.fromhex(spec.secret),
            (spec.link_host, spec.link_port),
            spec.tls,
            LinkOptions(retain=spec.retain),
        )

    # -- life -------------------------------------------------------------------------------

    def run(self) -> int:
        """Be the relay until the migration has ended. Answers the process's exit status."""
        try:
            self._open()
            while not self._link.closed:
                self._turn()
        except exception.EnlightenedError as error:
            LOG.exception("The relay ends")
            self._fail(str(error))
            self._link.abort()
        finally:
            self._close()
        LOG.info("Ended: %s", self.error or "complete")
        return 1 if self.error else 0

    def request_stop(self, reason: str) -> None:
        """End soon; callable from a signal handler or another thread."""
        self._stopping = reason
        self.wake()

    def _open(self) -> None:
        self.wake.open(self._selector)
        self._control.open()
        self._link.start(self._selector, self._listener if self.role is Role.DESTINATION else None)

    def _close(self) -> None:
        self.spec.save_state(self.state())
        for channel in self._channels.values():
            self._watch(channel, 0)
            channel.close()
        self._control.close()
        self._selector.close()
        self.wake.close()

    def _turn(self) -> None:
        now = time.monotonic()
        waits = [self._state_due - now]
        if (wait := self._link.timeout()) is not None:
            waits.append(wait)
        if self._read_at is not None:
            if now < self._read_at:
                waits.append(self._read_at - now)
            else:
                self._read_at = None
        for key, ready in self._selector.select(max(0.0, min(waits))):
            key.data(ready)
        self._link.tick()
        while (event := self._link.next_event()) is not None:
            self._on_link(event)
        self._link.settle()
        channels = list(self._channels.values())
        for channel in channels:
            if channel.read_open and not self._watched.get(channel, 0) & selectors.EVENT_READ:
                # It had to wait for room: nearly always there is something, and no need to ask.
                self._read_qemu(channel)
        now = time.monotonic()
        self._work(now)
        for channel in channels:
            self._rewatch(channel)
        if now >= self._state_due:
            self.spec.save_state(self.state())
            self._state_due = now + STATE_INTERVAL_S
            if self._stopping is None and os.path.exists(self.spec.unwanted):
                self._stopping = "not wanted any more"
        self._end_if_done(now)

    def _end_if_done(self, now: float) -> None:
        if self._link.finished:
            self._link.close()
        elif self._stopping is not None:
            self._fail(self._stopping)
            self._link.close(self._stopping)
        elif not self._channels and now - self._began > UNUSED_S:
            self._fail(f"QEMU did not connect within {UNUSED_S:g} s")
            self._link.close("unused")

    def _fail(self, reason: str) -> None:
        self.error = self.error or reason

    # -- hooks ------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        """Once per turn, after all I/O."""

    def _outgoing(self, channel: int, data: memoryview) -> None:
        """Bytes QEMU sends, before they go to the link."""

    def _incoming(self, channel: int, data: memoryview) -> bytes | memoryview:
        """Bytes from the link; what to give to QEMU for them."""
        return data

    def _outgoing_ended(self, channel: int) -> None:
        """QEMU sends no more on a channel."""

    def _opened(self, channel: int) -> None:
        """The peer's QEMU opened a channel."""

    def _paced(self, delay: float) -> None:
        """The peer says that so many seconds count less than CPU from here on."""

    def _peer_absent(self, reason: str) -> None:
        """The peer's relay has ended, or something on the way says so."""

    def _facts(self) -> Mapping[str, Any]:
        """What the state file says beyond what both sides know."""
        return {}

    # -- QEMU -------------------------------------------------------------------------------

    def _add_channel(self, number: int, sock: socket.socket) -> None:
        self._channels[number] = QemuSocket.adopt(number, sock)

    def _on_qemu(self, channel: QemuSocket, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._taken(channel, channel.flush())
        if ready & selectors.EVENT_READ and channel.read_open:
            self._read_qemu(channel)

    def _may_read(self, channel: int) -> bool:
        """Whether there is room for what QEMU says on a channel."""
        return self._link.can_send(channel) >= SMALL_READ

    def _read_qemu(self, channel: QemuSocket) -> None:
        """Read what there is and there is room for."""
        while self._may_read(channel.channel) and self._read_once(channel, None):
            pass

    def _read_once(self, channel: QemuSocket, most: int | None) -> bool:
        """Read at most so many bytes into the link; whether there may be more."""
        number = channel.channel
        buffer = self._link.buffer(number)[:most]
        if not buffer:
            return False
        count = channel.read_into(buffer)
        if count is None:
            return False
        if count == 0:
            self._end_outgoing(channel)
            return False
        self._outgoing(number, buffer[:count])
        self._link.commit(number, count)
        return True

    def _end_outgoing(self, channel: QemuSocket) -> None:
        """All that QEMU said on a channel was given to the link."""
        self._outgoing_ended(channel.channel)
        self._link.send_fin(channel.channel)

    def _rewatch(self, channel: QemuSocket) -> None:
        wanted = 0
        if channel.read_open and self._may_read(channel.channel):
            wanted |= selectors.EVENT_READ
        if channel.backlog:
            wanted |= selectors.EVENT_WRITE
        self._watch(channel, wanted)

    def _watch(self, channel: QemuSocket, wanted: int) -> None:
        watched = self._watched.get(channel, 0)
        if wanted == watched:
            return
        if not watched:
            self._selector.register(channel, wanted, lambda ready: self._on_qemu(channel, ready))
        elif not wanted:
            self._selector.unregister(channel)
        else:
            key = self._selector.get_key(channel)
            self._selector.modify(channel, wanted, key.data)
        self._watched[channel] = wanted

    # -- the link ---------------------------------------------------------------------------

    def _on_link(self, event: object) -> None:
        match event:
            case Lost() | PeerTurnedAway() | PeerReady():
                self._log(event)
            case events.Data(channel=number, view=view):
                self._deliver(number, view)
            case events.Opened(channel=number):
                self._opened(number)
            case events.Finished(channel=number):
                if number in self._channels:
                    self._channels[number].finish()
            case events.Reset(channel=number):
                self._drop_qemu(number)
            case events.Closed(reason=reason):
                if reason:
                    self._fail(f"the peer ended the link: {reason}")
                self._drop_all()
            case Broken(reason=reason) | Refused(reason=reason):
                self._end_link(reason)
            case PeerAbsent(reason=reason):
                self._peer_absent(reason)
            case events.Paced(delay=delay):
                self._paced(delay)

    def _end_link(self, reason: str) -> None:
        self._fail(reason)
        self._drop_all()
        self._link.close(reason)

    def _log(self, event: Lost | PeerTurnedAway | PeerReady) -> None:
        match event:
            case Lost(reason=reason):
                LOG.warning("Link lost, connecting again: %s", reason)
            case PeerTurnedAway(address=address, reason=reason):
                LOG.warning("Turned away %s: %s", address, reason)
            case PeerReady(resumed=resumed):
                LOG.info("Link %s", "resumed" if resumed else "ready")

    def _deliver(self, number: int, view: memoryview) -> None:
        data = self._incoming(number, view)
        channel = self._channels.get(number)
        if data is not view:  # rewritten: the original needs no memory any more
            self._link.delivered(number, len(view))
            if channel is not None:
                channel.write(data)
        elif channel is None:
            self._link.delivered(number, len(view))
        else:
            self._taken(channel, channel.write(view))

    def _taken(self, channel: QemuSocket, count: int) -> None:
        """QEMU took `count` more bytes of what the link had brought."""
        if count:
            self._link.delivered(channel.channel, count)

    def _drop_qemu(self, number: int) -> None:
        """Break one channel towards QEMU, which then knows that its peer is gone."""
        channel = self._channels.pop(number, None)
        if channel is not None:
            self._watch(channel, 0)
            if channel.backlog:
                self._link.delivered(number, channel.backlog)
            channel.close()
            self._link.send_reset(number)

    def _drop_all(self) -> None:
        for number in list(self._channels):
            self._drop_qemu(number)

    # -- state ------------------------------------------------------------------------------

    def _calls(self) -> dict[str, Any]:
        return {"status": self.state, "stop": self._stop_call}

    def _stop_call(self) -> dict[str, Any]:
        self.request_stop("stopped by an operator")
        return {}

    def state(self) -> dict[str, Any]:
        """What this relay is doing, ready for JSON."""
        session = self._link.session
        return {
            "pid": os.getpid(),
            "role": self.spec.role,
            "migration": self.spec.migration,
            "monotonic": time.monotonic(),
            "cpu_s": round(time.process_time(), 3),
            "error": self.error,
            "channels": len(self._channels),
            "link": {
                "ready": self._link.ready,
                "trouble": self._link.trouble,
                "reconnects": self._link.reconnects,
                "bytes_sent": session.bytes_sent,
                "bytes_received": session.bytes_received,
                "under_way": session.under_way,
                "limit": self._link.limit.window,
                "queue_delay_s": self._link.limit.queue_delay,
                "base_rtt_s": self._link.limit.base_rtt,
            },
            **self._facts(),
        }
