# SPDX-License-Identifier: Apache-2.0
"""What the remediator says over the bus: notifications for everybody, records for its peers.

Saying something may take as long as the bus is down. A thread of its own does it, and what
piles up beyond a bound is dropped: the journal has it.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

import oslo_messaging
from oslo_config import cfg

from nova_enlightened import rpc
from nova_enlightened.remediation.record import EvictionRecord

LOG = logging.getLogger(__name__)

TOPIC: Final = "nova-enlightened-journal"
VERSION: Final = "1.0"
MOST: Final = 1000

DECIDED: Final = "eviction.decided"
PROPOSED: Final = "eviction.proposed"
STARTED: Final = "eviction.started"
COMPLETED: Final = "eviction.completed"
FAILED: Final = "eviction.failed"


def journal_target(server: str | None = None) -> oslo_messaging.Target:
    """Where records go, see ``rpc.report_target``."""
    return oslo_messaging.Target(
        exchange=rpc.EXCHANGE, topic=TOPIC, server=server, fanout=server is None, version=VERSION
    )


class Outbox:
    """Does things that may take long, one after the other, in a thread."""

    def __init__(self, most: int = MOST) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._full = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Have something done; dropped where too much waits."""
        try:
            self._queue.put_nowait(call)
            self._full = False
        except queue.Full:
            if not self._full:
                LOG.warning("The message bus takes nothing: announcements are being dropped")
            self._full = True

    def stop(self, timeout: float = 2.0) -> None:
        """Finish what waits, as far as that takes no longer than so many seconds."""
        if self._thread.ident is None:
            return
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception as error:  # whatever it was, the next may go out
                LOG.warning("An announcement was lost: %s", error)


class Announcements:
    """Says what happens to evictions."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport,
        publisher: str,
        outbox: Outbox,
    ) -> None:
        self._notifier = oslo_messaging.Notifier(
            oslo_messaging.get_notification_transport(conf), publisher_id=publisher
        )
        self._client = oslo_messaging.get_rpc_client(transport, journal_target(), retry=rpc.RETRIES)
        self._outbox = outbox

    def notify(self, event: str, record: EvictionRecord) -> None:
        """Emit a notification; nothing but a log line where the configuration has no driver."""
        payload = record.to_dict()
        emit = self._notifier.warn if event == FAILED else self._notifier.info
        self._outbox.put(lambda: emit({}, event, payload))

    def share(self, record: EvictionRecord) -> None:
        """Tell the other instances, so that their journals hold it."""
        values = record.to_dict()
        self._outbox.put(lambda: self._client.cast({}, "eviction_record", record=values))


class PeerListener:
    """Hears what the leader shares.

    :param server: as ``rpc.ReportListener``.
    :param take: called with each record, in a thread of the bus.
    """

    target = oslo_messaging.Target(version=VERSION)

    def __init__(
        self,
        transport: oslo_messaging.Transport,
        server: str,
        take: Callable[[EvictionRecord], None],
    ) -> None:
        self._take = take
        self._server = oslo_messaging.get_rpc_server(transport, journal_target(server), [self])
        self._starting: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, without waiting for the bus."""
        self._starting = threading.Thread(
            target=self._server.start, name="peer-listener", daemon=True
        )
        self._starting.start()

    def stop(self) -> None:
        """Stop; returns at once where the bus was never reached."""
        if self._starting is not None and not self._starting.is_alive():
            self._server.stop()
            self._server.wait()

    def eviction_record(self, context: dict[str, Any], record: dict[str, Any]) -> None:
        """Called from the bus."""
        try:
            self._take(EvictionRecord.from_dict(record))
        except ValueError as error:
            LOG.warning("What a peer shared was dropped: %s", error)
