# SPDX-License-Identifier: Apache-2.0
"""The guest of one urgent migration: Nova's own, but for the call that migrates it."""

from collections.abc import Callable
from typing import Any

import libvirt
from oslo_log import log as logging

from nova_enlightened import exception
from nova_enlightened.host import spare_monitor, standing
from nova_enlightened.host.switch import PostCopySwitch
from nova_enlightened.virt.decision import Decision, Kind, Reason
from nova_enlightened.virt.outcome import End, Outcome

LOG = logging.getLogger(__name__)


def urgent_flags(flags: int, kind: Kind) -> int:
    """Libvirt's flags for a migration that is switched to post-copy at once.

    QEMU has no post-copy over several connections, and slowing the guest helps only pre-copy.
    Through the relays QEMU speaks to a unix socket on its own host, where libvirt has no name to
    verify and refuses TLS; it is the relays' link that is encrypted.
    """
    flags |= libvirt.VIR_MIGRATE_POSTCOPY
    flags &= ~(libvirt.VIR_MIGRATE_AUTO_CONVERGE | libvirt.VIR_MIGRATE_PARALLEL)
    if kind is Kind.ORDERED:
        flags &= ~libvirt.VIR_MIGRATE_TLS
    return flags


class UrgentGuest:
    """Stands in for ``nova.virt.libvirt.guest.Guest`` while one migration is under way.

    :param decision: ORDERED or POSTCOPY.
    :param on_order: called with the destination's libvirt and the relays' id, if there are any,
        before libvirt is asked.
    :param on_switch: called once, when QEMU first accepts the switch.
    :param on_ended: called once with the outcome, when the relays are not needed any more.
    :param on_fallback: called with the decision that takes the place of an ordered one.
    :param outcome: waits for how it ends that libvirt gave up after the switch.
    :param monitor: where QEMU connects its second monitor at the destination of relays.
    """

    def __init__(
        self,
        guest: Any,
        decision: Decision,
        *,
        on_order: Callable[[str, str | None], None],
        on_switch: Callable[[], None],
        on_ended: Callable[[str], None],
        on_fallback: Callable[[Decision], None],
        outcome: Callable[[], Outcome],
        monitor: str,
    ) -> None:
        self._guest = guest
        self._decision = decision
        self._on_order = on_order
        self._on_switch = on_switch
        self._outcome = outcome
        self._monitor = monitor
        self.end_found: Outcome | None = None
        self._on_ended = on_ended
        self._on_fallback = on_fallback
        self._switched = False
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def migrate(
        self,
        destination: str,
        migrate_uri: str | None = None,
        flags: int = 0,
        parallel: int = 0,
        **arguments: Any,
    ) -> None:
        """As Nova's, through the relays; where those refuse, as Nova's. `parallel` has no use.

        After the switch an error of libvirt is no failed migration; see `virt.outcome`.

        :raises libvirt.libvirtError: as Nova's.
        :raises EvictionError: the VM is lost.
        """
        decision = self._decision
        try:
            self._migrate(
                destination,
                migrate_uri=decision.migrate_uri or migrate_uri,
                flags=urgent_flags(flags, decision.kind),
                **arguments,
            )
        except libvirt.libvirtError as error:
            if self._has_switched() and not self._runs_here() and self._moved_after_all(error):
                self.end("completed")
                return
            self.end(f"failed: {error}")
            if decision.kind is not Kind.ORDERED or not self._may_try_again(error):
                raise
            self._on_fallback(Decision(Kind.POSTCOPY, Reason.RELAYS_FAILED, str(error)))
            self._migrate(
                destination,
                migrate_uri=migrate_uri,
                flags=urgent_flags(flags, Kind.POSTCOPY),
                **arguments,
            )
        else:
            self.end("completed")

    def end(self, outcome: str) -> None:
        """Tell the outcome, unless one was told."""
        if not self._ended:
            self._ended = True
            self._on_ended(outcome)

    def _migrate(self, destination: str, **arguments: Any) -> None:
        through_relays = arguments.get("migrate_uri") == self._decision.migrate_uri
        if through_relays and arguments.get("destination_xml"):
            arguments["destination_xml"] = self._monitored(arguments["destination_xml"])
        self._on_order(destination, self._decision.migration if through_relays else None)
        switch = PostCopySwitch(self._guest._domain, self._accepted)
        switch.start()
        try:
            self._guest.migrate(destination, **arguments)
        finally:
            switch.end()

    def _monitored(self, xml: str) -> str:
        """The domain of the destination with a second monitor, or as it was where that fails."""
        try:
            return spare_monitor.with_monitor(xml, self._monitor)
        except exception.HintError as error:
            LOG.warning("No second monitor for %s: %s", self._guest._domain.name(), error)
            return xml

    def _accepted(self) -> None:
        if not self._switched:
            self._switched = True
            self._on_switch()

    def _has_switched(self) -> bool:
        """Also where QEMU did before libvirt had its answer."""
        return self._switched or (
            standing.at_source(lambda: self._guest._domain) in standing.SWITCHED
        )

    def _may_try_again(self, error: Any) -> bool:
        """Whether the guest runs here as if nothing had happened, and nobody asked it to stay.

        libvirt lets it run on only if it is certain that it never ran at the destination.
        """
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED:
            return False
        return self._runs_here()

    def _moved_after_all(self, error: Any) -> bool:
        """Whether the VM went on after libvirt's error; waits until that is known.

        :raises EvictionError: it is lost at its destination.
        """
        LOG.warning("libvirt follows %s no more: %s", self._guest._domain.name(), error)
        self.end_found = found = self._outcome()
        LOG.warning("%s %s: %s", self._guest._domain.name(), found.end, found.words)
        if found.end is End.LOST_THERE:
            self.end(f"failed: {found.words}")
            raise exception.EvictionError(
                f"{found.words}. It is not started at its source again by itself"
            )
        return found.end is not End.STAYED

    def _runs_here(self) -> bool:
        try:
            return bool(self._guest._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        except libvirt.libvirtError:
            return False
