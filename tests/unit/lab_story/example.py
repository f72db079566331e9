# SPDX-License-Identifier: Apache-2.0
"""A made-up story with two acts."""

from lab.story import Act, Figure, Mark, Moment, Story, VmLine

BIN_S = 0.1


def vm(name: str, moves: bool, back: float, end: float = 16.0) -> VmLine:
    """Half rate until 0.6 s, nothing until ``back`` where it moves, then all of it."""
    times = [-6 + BIN_S * (n + 0.5) for n in range(round((end + 6) / BIN_S))]
    rates = [500.0 if at < 0.6 else 0.0 if moves and at < back else 1000.0 for at in times]
    return VmLine(name, moves, "requests/s", 1000.0, -6.0, BIN_S, tuple(rates), back - 0.3)


def act(way: str, title: str, back: float, freed: float) -> Act:
    marks = (
        Mark(Moment.DECISION, 0.0),
        Mark(Moment.SWITCHOVER, 0.6, "the source stopped executing"),
        Mark(Moment.EXECUTING, 0.7),
        Mark(Moment.RECOVERED, back),
        Mark(Moment.SOURCE_FREED, freed),
    )
    figures = (
        Figure("recovery", "switchover to 90 % of full rate", back - 0.6, "s"),
        Figure("lost", "work lost by both", back, "s"),
    )
    return Act(way, title, (vm("web", True, back), vm("db", False, back)), marks, figures, ("So.",))


def story() -> Story:
    return Story(
        title="A VM leaves",
        told_at="2025-01-01T00:00:00+00:00",
        acts=(
            act("enlightened", "Enlightened post-copy", 2.3, 12.0),
            act("stock_postcopy", "Stock post-copy", 9.1, 11.0),
        ),
        setting={"link": "400 Mbit/s"},
        versions={"QEMU": "7.2"},
    )
