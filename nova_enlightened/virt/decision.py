# SPDX-License-Identifier: Apache-2.0
"""How a live migration goes: as Nova does it, or by post-copy, in the guest's order or QEMU's.

Facts in, decision out. Three questions in this order: is post-copy possible for this instance, is
it allowed, is it wanted. The first two are answered from what the driver knows; only if neither
rules it out is the host's agent asked, who knows of urgent orders and can start relays.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.virt.permission import Permission

SCHEME: Final = "unix://"
SOCKET_PATH: Final = 107
"""Bytes that the path of a unix socket may have."""


class Kind(enum.StrEnum):
    """How a live migration goes."""

    STOCK = "stock"
    """As Nova does it, every call and flag."""
    ORDERED = "ordered"
    """Post-copy through the relays, switched at once, pages in the guest's order."""
    POSTCOPY = "post-copy"
    """Post-copy as libvirt does it, switched at once, pages in QEMU's order."""


class Reason(enum.StrEnum):
    """Why, as a fixed word to count by."""

    NOT_QEMU = "not_qemu"
    BLOCK_MIGRATION = "block_migration"
    TUNNELLED = "tunnelled"
    PAUSED = "paused"
    DEVICES_OR_MEMORY = "devices_or_memory"
    NOT_PERMITTED = "not_permitted"
    FORBIDDEN = "forbidden"
    AGENT_UNREACHABLE = "agent_unreachable"
    AGENT_REFUSED = "agent_refused"
    AGENT_ANSWER = "agent_answer"
    NOT_WANTED = "not_wanted"
    NO_ORDER = "no_order"
    """Wanted, but the pages cannot cross in the guest's order."""
    RELAYS_FAILED = "relays_failed"
    """It was ordered, and the relays or their link refused before anything was lost."""
    WANTED = "wanted"
    ERROR = "error"


@dataclass(frozen=True)
class Facts:
    """What the driver knows of a migration before anybody is asked.

    :param virt_type: ``[libvirt] virt_type``.
    :param obstacle: of `obstacles.find`.
    :param permitted: post-copy is among the flags that Nova computed for this migration.
    """

    virt_type: str
    block_migration: bool
    tunnelled: bool
    paused: bool
    obstacle: str | None
    permitted: bool
    permission: Permission


@dataclass(frozen=True)
class Decision:
    """How a migration goes and why.

    :param words: for a person, beside the reason.
    :param migrate_uri: where QEMU connects; ORDERED only.
    :param migration: the relays' id; ORDERED only.
    """

    kind: Kind
    reason: Reason
    words: str
    migrate_uri: str | None = None
    migration: str | None = None


# What rules post-copy out: (reason, whether it holds, in words). The first that holds decides.
_POSSIBLE: Final[tuple[tuple[Reason, Callable[[Facts], bool], Callable[[Facts], str]], ...]] = (
    (
        Reason.NOT_QEMU,
        lambda facts: facts.virt_type not in ("qemu", "kvm"),
        lambda facts: f"virt_type {facts.virt_type} has no post-copy",
    ),
    (
        Reason.BLOCK_MIGRATION,
        lambda facts: facts.block_migration,
        lambda _: "its disks have to be copied first",
    ),
    (
        Reason.TUNNELLED,
        lambda facts: facts.tunnelled,
        lambda _: "libvirt has no post-copy through its own tunnel",
    ),
    (
        Reason.PAUSED,
        lambda facts: facts.paused,
        lambda _: "it is paused, and would wait for no page",
    ),
    (
        Reason.DEVICES_OR_MEMORY,
        lambda facts: facts.obstacle is not None,
        lambda facts: str(facts.obstacle),
    ),
)
_ALLOWED: Final = (
    (
        Reason.NOT_PERMITTED,
        lambda facts: not facts.permitted,
        lambda _: "[libvirt] live_migration_permit_post_copy is off",
    ),
    (
        Reason.FORBIDDEN,
        lambda facts: not facts.permission.allowed,
        lambda facts: facts.permission.why,
    ),
)


def ruled_out(facts: Facts) -> Decision | None:
    """STOCK where post-copy is not possible or not allowed; None: ask whether it is wanted."""
    for reason, holds, words in (*_POSSIBLE, *_ALLOWED):
        if holds(facts):
            return Decision(Kind.STOCK, reason, words(facts))
    return None


def by_answer(answer: Mapping[str, Any]) -> Decision:
    """What follows from the agent's answer to ``prepare_eviction``; see `rpc.HostAPI`.

    An answer that is not what this version knows leaves the migration to Nova.
    """
    wanted, ordered = answer.get("wanted"), answer.get("ordered")
    words = str(answer.get("reason", ""))
    if wanted is False:
        return Decision(Kind.STOCK, Reason.NOT_WANTED, words)
    if wanted is True and ordered is False:
        return Decision(Kind.POSTCOPY, Reason.NO_ORDER, words)
    uri, migration = answer.get("migrate_uri"), answer.get("migration")
    if wanted is True and ordered is True and _is_socket(uri) and isinstance(migration, str):
        return Decision(Kind.ORDERED, Reason.WANTED, words, uri, migration)
    return Decision(Kind.STOCK, Reason.AGENT_ANSWER, f"the agent's answer makes no sense: {answer}")


def by_failure(error: exception.EnlightenedError) -> Decision:
    """What follows where the agent gives no answer."""
    refused = isinstance(error, exception.AgentRefused)
    reason = Reason.AGENT_REFUSED if refused else Reason.AGENT_UNREACHABLE
    return Decision(Kind.STOCK, reason, str(error))


def _is_socket(uri: object) -> bool:
    if not isinstance(uri, str) or not uri.startswith(f"{SCHEME}/"):
        return False
    return len(uri.removeprefix(SCHEME).encode()) <= SOCKET_PATH
