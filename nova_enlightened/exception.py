# SPDX-License-Identifier: Apache-2.0
"""Every error this project raises on purpose.

There is one root, and every class says whether trying the same thing again can help.
Errors of other libraries (libvirt, ssl, OSError) are translated once, where they are met, with
``raise ... from``; nothing above that place needs to know them.
"""


class EnlightenedError(Exception):
    """Root of all errors here; ``retryable`` says whether the same call may succeed later."""

    retryable = False


class ConfigError(EnlightenedError):
    """The configuration contradicts itself or names something that is not there."""


class StreamError(EnlightenedError):
    """A byte stream is not what its format allows.

    :param offset: bytes from the beginning of the stream to the item that is wrong.
    :param section: the stream section (or message) the item belongs to.
    """

    def __init__(self, message: str, *, offset: int | None = None, section: str = "") -> None:
        place = ", ".join(
            part
            for part in (
                f"section {section}" if section else "",
                f"byte {offset}" if offset is not None else "",
            )
            if part
        )
        super().__init__(f"{message} ({place})" if place else message)
        self.offset = offset
        self.section = section


class ReturnPathError(StreamError):
    """The return path (destination to source) breaks its format."""


class HintError(EnlightenedError):
    """A guest's hints are malformed, too large or inconsistent; they are dropped whole."""


class PlanError(EnlightenedError):
    """A page, block or policy that does not exist was named while planning."""


class ApplianceError(EnlightenedError):
    """A file of a stored appliance is malformed, past a limit, or contradicts another."""


class ManifestError(ApplianceError):
    """A manifest is not one, or describes no appliance that could be played."""


class ChunkIndexError(ApplianceError):
    """A chunk index, or the table of units beside it, is damaged or past a limit."""


class ChunkError(ApplianceError):
    """Stored bytes are not the chunk they should be; another reading of them may be right.

    :param pack: name of the pack the chunk is in.
    :param offset: bytes from the beginning of the pack to the chunk.
    """

    retryable = True

    def __init__(self, message: str, *, pack: str, offset: int) -> None:
        super().__init__(f"{message} (pack {pack}, byte {offset})")
        self.pack = pack
        self.offset = offset


class TraceError(ApplianceError):
    """A trace of an appliance's run is damaged, past a limit, or of another appliance."""


class PrefetchPlanError(ApplianceError):
    """A prefetch plan is damaged, past a limit, or of another appliance."""


class HostUnfit(EnlightenedError):
    """A stored appliance cannot execute on this host; another may have what it needs."""


class LinkError(EnlightenedError):
    """The link between two relays broke; it may be made again and resumed."""

    retryable = True


class LinkProtocolError(LinkError):
    """The peer broke the link's protocol; making the link again would meet the same peer."""

    retryable = False


class PeerRefused(LinkError):
    """The peer is not the relay this migration expects; nothing of it reaches QEMU."""

    retryable = False


class RelayError(EnlightenedError):
    """A relay process could not be started, asked or stopped."""


class RelayGone(RelayError):
    """No relay answers: it has ended, or was never started."""


class GuestUnreachable(EnlightenedError):
    """No answer from inside the guest; it may come up later."""

    retryable = True


class AgentUnreachable(EnlightenedError):
    """The agent of a compute host, or the message bus, does not answer."""

    retryable = True


class AgentRefused(EnlightenedError):
    """The agent of a compute host declines what it was asked; the message is its own."""


class CollectorError(EnlightenedError):
    """Something of the host cannot be sampled now; the next sample may find it again."""

    retryable = True


class PlacementError(EnlightenedError):
    """The placement service does not answer, or not as expected; translated from the SDK's."""

    retryable = True


class LibvirtError(EnlightenedError):
    """libvirt refused or failed a call; translated from ``libvirt.libvirtError``."""


class EvictionError(EnlightenedError):
    """An eviction ended otherwise than with the VM executing at its destination."""


class NovaUnreachable(EnlightenedError):
    """Nova's API does not answer, or answers that it cannot now. Whether a request that changes
    something was carried out is not known then.
    """

    retryable = True


class NovaRefused(EnlightenedError):
    """Nova's API declines a request, which changed nothing."""


class ServerGone(NovaRefused):
    """There is no such server (any more)."""


class JournalError(EnlightenedError):
    """A journal, of evictions or of departures, cannot be read or written."""


class StoreError(EnlightenedError):
    """A store of appliances does not deliver; the message names the object and the range."""

    retryable = True


class StoreObjectMissing(StoreError):
    """There is no such object in the store."""

    retryable = False


class StoreRefused(StoreError):
    """The store declines: access, a name, or a way to answer that is of no use."""

    retryable = False


class RangesIgnored(StoreRefused):
    """The store answers with other bytes than the range that was asked for."""


class StoreCorrupt(StoreError):
    """An object is shorter than its description, or not what its digest says."""

    retryable = False


class PlayerError(EnlightenedError):
    """A player process could not be started, asked or stopped, or its appliance not be played."""


class PlayerGone(PlayerError):
    """No player answers: it has ended, or was never started."""


class StreamingError(EnlightenedError):
    """A VM could not be started from, or kept on, a stored appliance."""


class MonitorSilent(StreamingError):
    """QEMU does not answer at its second monitor, or has none."""


class CaptureError(EnlightenedError):
    """A VM could not be captured, or its saved files not be read; the VM goes on as it was."""


class CaptureRefused(CaptureError):
    """The VM, or its saved file, cannot become an appliance; the message says why."""


class ImageServiceError(EnlightenedError):
    """Glance does not answer, or declines; translated from openstacksdk's errors."""
