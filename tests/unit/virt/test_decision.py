# SPDX-License-Identifier: Apache-2.0
"""How a live migration goes: the order of the questions, and what follows from the answers."""

import dataclasses
import pathlib
import re
from typing import Any

import pytest

from nova_enlightened import exception
from nova_enlightened.virt import decision
from nova_enlightened.virt.decision import Facts, Kind, Reason
from nova_enlightened.virt.permission import Permission

PAGE = pathlib.Path(__file__).parents[3] / "doc/source/decide.rst"
PLAIN = Facts(
    virt_type="kvm",
    block_migration=False,
    tunnelled=False,
    paused=False,
    obstacle=None,
    permitted=True,
    permission=Permission(True, "nobody forbids it"),
)
WRONG: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.NOT_QEMU, {"virt_type": "parallels"}),
    (Reason.BLOCK_MIGRATION, {"block_migration": True}),
    (Reason.TUNNELLED, {"tunnelled": True}),
    (Reason.PAUSED, {"paused": True}),
    (Reason.DEVICES_OR_MEMORY, {"obstacle": "its memory is huge pages"}),
    (Reason.NOT_PERMITTED, {"permitted": False}),
    (Reason.FORBIDDEN, {"permission": Permission(False, "the image forbids it")}),
]
ANSWER = {
    "wanted": True,
    "ordered": True,
    "reason": "urgent order of remediator",
    "migrate_uri": "unix:///run/nova-enlightened/1234.sock",
    "migration": "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de",
}


def test_nothing_is_ruled_out_where_nothing_is_in_the_way() -> None:
    assert decision.ruled_out(PLAIN) is None


@pytest.mark.parametrize("reason, change", WRONG)
def test_each_obstacle_leaves_the_migration_to_nova(reason: Reason, change: dict[str, Any]) -> None:
    made = decision.ruled_out(dataclasses.replace(PLAIN, **change))
    assert made is not None
    assert (made.kind, made.reason) == (Kind.STOCK, reason)
    assert made.words


@pytest.mark.parametrize("first", range(len(WRONG)))
def test_what_is_impossible_is_named_before_what_is_forbidden(first: int) -> None:
    facts = PLAIN
    for _, change in WRONG[first:]:
        facts = dataclasses.replace(facts, **change)
    made = decision.ruled_out(facts)
    assert made is not None
    assert made.reason is WRONG[first][0]


def test_an_order_with_relays_is_carried_out_through_them() -> None:
    made = decision.by_answer(ANSWER)
    assert (made.kind, made.reason) == (Kind.ORDERED, Reason.WANTED)
    assert (made.migrate_uri, made.migration) == (ANSWER["migrate_uri"], ANSWER["migration"])
    assert made.words == ANSWER["reason"]


def test_an_order_without_relays_is_post_copy_in_qemus_order() -> None:
    made = decision.by_answer({"wanted": True, "ordered": False, "reason": "no agent there"})
    assert (made.kind, made.reason) == (Kind.POSTCOPY, Reason.NO_ORDER)
    assert made.migrate_uri is None


def test_what_nobody_wants_is_left_to_nova() -> None:
    made = decision.by_answer({"wanted": False, "ordered": False, "reason": "no order"})
    assert (made.kind, made.reason) == (Kind.STOCK, Reason.NOT_WANTED)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"wanted": "yes", "ordered": True},
        {"wanted": True},
        {**ANSWER, "migrate_uri": None},
        {**ANSWER, "migrate_uri": "tcp://192.0.2.1:4444"},
        {**ANSWER, "migrate_uri": "unix://relative.sock"},
        {**ANSWER, "migrate_uri": f"unix:///{'x' * 107}"},
        {**ANSWER, "migration": None},
    ],
)
def test_an_answer_of_another_version_leaves_the_migration_to_nova(answer: dict[str, Any]) -> None:
    made = decision.by_answer(answer)
    assert (made.kind, made.reason) == (Kind.STOCK, Reason.AGENT_ANSWER)


@pytest.mark.parametrize(
    "error, reason",
    [
        (exception.AgentUnreachable("timed out"), Reason.AGENT_UNREACHABLE),
        (exception.AgentRefused("no link with TLS"), Reason.AGENT_REFUSED),
    ],
)
def test_without_an_answer_the_migration_is_left_to_nova(
    error: exception.EnlightenedError, reason: Reason
) -> None:
    made = decision.by_failure(error)
    assert (made.kind, made.reason) == (Kind.STOCK, reason)
    assert str(error) in made.words


def test_the_documents_name_every_reason_in_the_order_it_is_looked_at() -> None:
    named = re.findall(r"^``(\w+)``  ", PAGE.read_text().split("How does a migration go?")[1], re.M)
    assert sorted(named) == sorted(Reason)
    assert named[: len(WRONG)] == [reason for reason, _ in WRONG]
