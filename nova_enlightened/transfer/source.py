# SPDX-License-Identifier: Apache-2.0
"""The relay beside the sending QEMU: it observes, and puts requests into the return path."""

import logging
import pathlib
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from nova_enlightened import exception, niceness
from nova_enlightened.plan.injector import Worth
from nova_enlightened.plan.window import RESEQUENCED, WindowLimits
from nova_enlightened.stream import encode
from nova_enlightened.stream.link_state import Role
from nova_enlightened.transfer import unix_socket
from nova_enlightened.transfer.gait import BULK, CALM, URGENT, Gait, next_gait
from nova_enlightened.transfer.ordering import OrderedMigration, Phase
from nova_enlightened.transfer.planning import Planner
from nova_enlightened.transfer.qemu_socket import READ_SIZE, QemuSocket
from nova_enlightened.transfer.relay import MAIN, SMALL_READ, Relay
from nova_enlightened.transfer.resequencer import Resequencer
from nova_enlightened.transfer.spec import RelaySpec

LOG = logging.getLogger(__name__)

AHEAD: Final = 256 * 1024
"""Bytes read ahead of the link: enough that it never waits for QEMU."""
ENOUGH: Final = 1024 * 1024
"""Bytes read and asked for at which nothing more is asked for. It is more than is read ahead, so
that QEMU waits with pages that were asked for, and not with pages of its own choice."""
HOLD: Final = 192 * 1024 * 1024
"""Bytes of pages nobody asked for that are held back; beyond that they go along."""
MOST_HELD: Final = HOLD + 16 * 1024 * 1024
"""Beyond this nothing is read, not even for what stands behind it."""
IDLE: Final = 64 * 1024
"""With less under way the link is nearly idle, and any page is better than none."""
SMALL_SEND: Final = 8 * 1024
REST_S: Final = 0.002
"""How long QEMU is left to fill its socket again, while the link has enough."""


class SourceRelay(Relay):
    """Accepts QEMU's channels on ``migrate_uri`` and orders the pages."""

    role = Role.SOURCE

    def __init__(self, spec: RelaySpec, listener: socket.socket | None) -> None:
        super().__init__(spec, listener)
        begin = min(max(RESEQUENCED.start, spec.window_floor), spec.window_cap)
        self._ordered = OrderedMigration(WindowLimits(spec.window_floor, begin, spec.window_cap))
        self._planner = Planner(spec.policy, spec.layout, self.wake)
        self._unplanned = spec.knowledge is not None
        self._pace = 0.0
        self._calmed = False
        self._take_gait(BULK if spec.knowledge is None else URGENT)
        if spec.knowledge is not None:
            self._planner.know(spec.knowledge)
        self._plan_error: str | None = None
        self._resequencer: Resequencer | None = None
        self._resequenced = False
        self._scratch: memoryview | None = None  # of what nobody will need

    def _take_gait(self, gait: Gait) -> None:
        self._gait = gait
        self._link.limit.aim(gait.delay, gait.queue)
        self._link.leave_unsent(gait.unsent)
        if gait.ack != self._pace:
            self._pace = gait.ack
            self._link.send_pace(gait.ack)

    def _choose_gait(self, now: float) -> None:
        urgent_done = self._ordered.marks.urgent_done is not None
        if urgent_done and not self._calmed:
            self._calmed = True
            niceness.ask(niceness.FAIR)
        gait = next_gait(
            self._gait,
            switched=self._ordered.phase is Phase.POSTCOPY,
            urgent_done=urgent_done,
            faults=self._ordered.faulted_at,
            now=now,
        )
        if gait is not self._gait:
            self._take_gait(gait)

    def _open(self) -> None:
        super()._open()
        if self._listener is None:
            self._listener = unix_socket.listen(self.spec.socket)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _close(self) -> None:
        self._write_trace()
        self._planner.close()
        super()._close()
        if self._listener is not None:
            self._listener.close()
        pathlib.Path(self.spec.socket).unlink(missing_ok=True)

    def _accept(self, _ready: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        number = len(self._channels)
        self._link.send_open(number, urgent=number != MAIN)
        self._add_channel(number, sock)

    def _outgoing(self, channel: int, data: memoryview) -> None:
        try:
            self._ordered.forward(channel, data, time.monotonic())
        except exception.StreamError as error:
            self._refuse_stream(error)

    # -- the main channel after the switch ----------------------------------------------------

    def _may_read(self, channel: int) -> bool:
        if self._scratch is not None:
            return self._ordered.phase is not Phase.POSTCOPY
        sequencer = self._resequencer
        if channel != MAIN:
            return super()._may_read(channel)
        if sequencer is None:
            least = min(self._gait.read, max(SMALL_READ, self._link.limit.window // 3))
            return self._link.can_send(channel) >= least and not self._rests
        if not self._link.ready:
            # QEMU that has sent its last page cannot resume any more (from 8.2 on): while nothing
            # crosses it is left with what it has.
            return False
        if self._leaves and sequencer.held < SMALL_READ and not self._ordered.boundary(MAIN):
            return not sequencer.held  # at a boundary: it is left as soon as nothing is held
        if sequencer.held < MOST_HELD and (
            self._ordered.awaited or (self._ordered.outstanding and self._ready() < AHEAD)
        ):
            return True
        # QEMU sends pages of its own choice as soon as it has answered all requests.
        return not self._ordered.pulling and sequencer.held < AHEAD

    def _read_qemu(self, channel: QemuSocket) -> None:
        if self._scratch is not None:
            self._hands_over()
            return
        after_switch = self._ordered.phase is Phase.POSTCOPY and not self._resequenced
        if channel.channel != MAIN or not after_switch:
            self._read_on(channel)
            return
        if self._resequencer is None and not self._aligned(channel):
            return
        while (sequencer := self._resequencer) is not None and self._may_read(MAIN):
            most = None
            if self._leaves and sequencer.held < SMALL_READ:
                most = self._ordered.boundary(MAIN)
                if not most and sequencer.can_leave:
                    self._leave()
                    break
            buffer = sequencer.buffer()[: most or None]
            count = channel.read_into(buffer)
            if count is None:
                return
            if count == 0:
                sequencer.end()
                return
            self._outgoing(MAIN, sequencer.receive(count))
        if self._resequencer is None:
            self._read_on(channel)

    def _read_on(self, channel: QemuSocket) -> None:
        """Read in QEMU's order; in large steps where delay counts little."""
        sent = self._link.session.bytes_sent
        super()._read_qemu(channel)
        session, limit = self._link.session, self._link.limit
        if (
            self._gait is CALM
            and channel.channel == MAIN
            and session.bytes_sent > sent
            and session.under_way > limit.window // 2
            and self._may_read(MAIN)
        ):
            # QEMU has written no more yet. What it writes next would be seen page by page.
            self._read_at = time.monotonic() + REST_S

    @property
    def _rests(self) -> bool:
        return self._read_at is not None and time.monotonic() < self._read_at

    @property
    def _leaves(self) -> bool:
        """Whether order is worth no more than what it costs: QEMU's own will do from here."""
        return self._ordered.marks.urgent_done is not None or self._plan_error is not None

    def _leave(self) -> None:
        LOG.info("Pages cross in QEMU's own order from here on")
        self._resequencer = None
        self._resequenced = True
        self._ordered.leave()

    def _aligned(self, channel: QemuSocket) -> bool:
        """Carry the main channel up to where its pages can be told apart."""
        while self._link.can_send(MAIN) >= SMALL_READ:
            self._resequencer = self._ordered.resequence(MAIN)
            if self._resequencer is not None:
                return True
            if not self._read_once(channel, self._ordered.distance(MAIN)):
                return False
        return False

    def _ready(self) -> int:
        """Bytes held that were asked for, or whose stretch of the plan has come."""
        sequencer = self._resequencer
        if sequencer is None:
            return 0
        return sequencer.ready(self._ordered.horizon if self._ordered.pulling else Worth.ASKED)

    def _pump(self, now: float) -> None:
        """Give the link pages while it has room, those nobody asked for when it has no others."""
        sequencer = self._resequencer
        if sequencer is None:
            return
        session = self._link.session
        under_way, attached = session.under_way, session.attached
        parts: list[bytes] = []
        # The guest waits: these do not wait for room as well, while what is kept allows it.
        while attached and under_way < self.spec.retain // 2 and sequencer.ready(Worth.DEMANDED):
            parts.append(self._next_part(sequencer, URGENT.send, Worth.DEMANDED, now))
            under_way += len(parts[-1])
        room = self._link.can_send(MAIN) - (under_way - session.under_way)
        while room >= SMALL_SEND:
            anything = sequencer.held > HOLD or under_way < IDLE
            horizon = Worth.BACKGROUND if anything else self._ordered.horizon
            part = self._next_part(sequencer, min(room, self._gait.send), horizon, now)
            if not part:
                break
            parts.append(part)
            under_way += len(part)
            room -= len(part)
        if parts:
            self._link.send_data(MAIN, parts)
        channel = self._channels.get(MAIN)
        if sequencer.finished and channel is not None:
            self._leave()
            if not channel.read_open:
                self._end_outgoing(channel)

    def _next_part(self, sequencer: Resequencer, most: int, horizon: int, now: float) -> bytes:
        """About as many bytes at most, which the link is given now; none: there is nothing."""
        data, pages = sequencer.take(most, horizon)
        self._ordered.emitted(pages, now)
        return data

    def _outgoing_ended(self, channel: int) -> None:
        try:
            self._ordered.forward_ended(channel)
        except exception.StreamError as error:
            LOG.warning("QEMU ended its stream early: %s", error)
            self._fail(str(error))

    def _incoming(self, channel: int, data: memoryview) -> bytes | memoryview:
        if channel != MAIN:
            return data
        try:
            return self._ordered.back(data, time.monotonic())
        except exception.ReturnPathError as error:
            self._refuse_stream(error)
            return b""

    def _peer_absent(self, reason: str) -> None:
        # Until the switch QEMU can go back. Afterwards only the link's return is better than
        # QEMU's own recovery, which is for those to begin who see both hosts.
        if self._ordered.phase in (Phase.WAITING, Phase.PRECOPY) and not self._hands_over():
            self._end_link(f"the destination's relay has ended: {reason}")

    def _hands_over(self) -> bool:
        """Whether QEMU has begun to hand the guest over, to a destination that is gone.

        Closed now, its socket would have it pause for good where it has sent the last of its device
        state, and left open have it stand still for ever where it has not. So that is taken, and
        goes nowhere: a destination that lacks a part of it can never run the guest.
        """
        main = self._channels.get(MAIN)
        self._scratch = self._scratch or memoryview(bytearray(READ_SIZE))
        while main is not None and main.read_open and self._may_read(MAIN):
            count = main.read_into(self._scratch)
            if count is None:
                break
            if count == 0:
                self._end_outgoing(main)
            self._outgoing(MAIN, self._scratch[:count])
        return self._ordered.handing_over or self._ordered.phase is Phase.POSTCOPY

    def _refuse_stream(self, error: exception.StreamError) -> None:
        """Impossible lengths: carrying on would feed QEMU nonsense."""
        self._fail(str(error))
        self.request_stop(str(error))

    def _work(self, now: float) -> None:
        if self._scratch is not None:
            return
        self._choose_gait(now)
        self._plan()
        self._pump(now)
        main = self._channels.get(MAIN)
        if self._resequencer is None and not self._resequenced:
            # QEMU may have nothing to say before it is asked.
            self._resequencer = self._ordered.resequence(MAIN)
        if main is not None and self._resequencer is not None:
            requests = self._ordered.inject(
                now, planned=not self._leaves and self._ready() < ENOUGH
            )
            if requests:
                main.write(requests)

    def _plan(self) -> None:
        if self._unplanned and self._ordered.space is not None:
            self._planner.plan(self._ordered.space)
            self._unplanned = False
        try:
            plan = self._planner.result()
            if plan is not None:
                self._ordered.adopt(plan, time.monotonic())
        except Exception as error:  # a policy is a plugin: whatever it raises, QEMU's order stays
            self._plan_error = f"{type(error).__name__}: {error}"
            LOG.warning("No plan, QEMU's own order stays: %s", self._plan_error)

    def _calls(self) -> dict[str, Any]:
        return {**super()._calls(), "know": self._know, "take_leave": self._take_leave}

    def _take_leave(self) -> dict[str, Any]:
        """Have QEMU's return path end as if its destination had said its last word."""
        main = self._channels.get(MAIN)
        if main is not None:
            main.write(encode.shut())
        return {}

    def _know(self, snapshot: str) -> dict[str, Any]:
        self._planner.know(snapshot)
        self._unplanned = True
        return {"phase": self._ordered.phase.value}

    def _facts(self) -> Mapping[str, Any]:
        return {
            **self._ordered.statistics(),
            "plan_error": self._plan_error,
            "held_bytes": self._resequencer.held if self._resequencer is not None else 0,
            "ready_bytes": self._ready(),
        }

    def _write_trace(self) -> None:
        trace = self._ordered.trace(None)
        if trace is not None:
            pathlib.Path(self.spec.trace).write_bytes(trace.encode())
