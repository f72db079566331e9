# SPDX-License-Identifier: Apache-2.0
"""Where the parser of the forward stream can be, and what may follow there.

Everything that decides a transition is in :data:`TRANSITIONS`. A pair that is not listed
makes the stream opaque: nothing is guessed. (String enumerations, because a string knows its
hash: tables keyed by them are looked up for every buffer.)
"""

import enum
from typing import Final


class Channel(enum.StrEnum):
    """Which connection of a migration a stream is."""

    MAIN = "main"
    PREEMPT = "preempt"
    RESUMED = "resumed"
    MULTIFD = "multifd"


class State(enum.StrEnum):
    """What the next byte belongs to."""

    FIRST = "first bytes"
    HEADER = "header"
    HEADED = "after header"
    CONFIGURATION = "configuration"
    SECTIONS = "between sections"
    RAM_SETUP = "ram setup"
    BLOCK_LIST = "RAM block list"
    RAM = "ram"
    RAM_ENDED = "after ram"
    PACKAGE = "package"
    ENDED = "after end"
    DESCRIPTION = "vm description"
    DONE = "done"
    PREEMPT = "preempt channel"
    OPAQUE = "opaque"


class Input(enum.StrEnum):
    """One element of the stream, recognised."""

    MAIN = "first bytes of a main stream"
    PREEMPT = "first bytes of a preempt channel"
    RESUMED = "first bytes of a resumed stream"
    MAGIC = "magic"
    CONFIGURATION = "configuration"
    SUBSECTION = "configuration subsection"
    RAM_START = "start of ram section"
    RAM_PART = "part of ram section"
    FOOTER = "section footer"
    COMMAND = "command"
    PACKAGE = "package"
    PACKAGE_END = "end of package"
    BLOCK_LIST = "RAM block list"
    BLOCK = "RAM block"
    BLOCK_LIST_END = "end of RAM block list"
    PAGE = "page"
    RAM_END = "end of RAM records"
    EOF = "end of stream"
    DESCRIPTION = "vm description"
    DESCRIPTION_END = "end of vm description"


FIRST_INPUT: Final[dict[Channel, Input]] = {
    Channel.MAIN: Input.MAIN,
    Channel.PREEMPT: Input.PREEMPT,
    Channel.RESUMED: Input.RESUMED,
}
"""What knowing the channel is to the table; a multifd channel is refused."""

_BETWEEN: Final[dict[Input, State]] = {
    Input.RAM_START: State.RAM_SETUP,
    Input.RAM_PART: State.RAM,
    Input.COMMAND: State.SECTIONS,
    Input.PACKAGE: State.PACKAGE,
    Input.EOF: State.ENDED,
}

TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.FIRST, Input.MAIN): State.HEADER,
    (State.FIRST, Input.PREEMPT): State.PREEMPT,
    # A stream resumed after a lost connection has no header.
    (State.FIRST, Input.RESUMED): State.SECTIONS,
    (State.HEADER, Input.MAGIC): State.HEADED,
    (State.HEADED, Input.CONFIGURATION): State.CONFIGURATION,
    (State.CONFIGURATION, Input.SUBSECTION): State.CONFIGURATION,
    # Machine types of QEMU 2.3 and before send neither configuration nor footers.
    **{
        (state, given): then
        for state in (State.HEADED, State.CONFIGURATION, State.SECTIONS, State.RAM_ENDED)
        for given, then in _BETWEEN.items()
    },
    (State.RAM_ENDED, Input.FOOTER): State.SECTIONS,
    (State.RAM_SETUP, Input.BLOCK_LIST): State.BLOCK_LIST,
    (State.BLOCK_LIST, Input.BLOCK): State.BLOCK_LIST,
    (State.BLOCK_LIST, Input.BLOCK_LIST_END): State.RAM_SETUP,
    (State.RAM_SETUP, Input.RAM_END): State.RAM_ENDED,
    (State.RAM, Input.PAGE): State.RAM,
    (State.RAM, Input.RAM_END): State.RAM_ENDED,
    (State.PACKAGE, Input.PACKAGE_END): State.SECTIONS,
    (State.ENDED, Input.DESCRIPTION): State.DESCRIPTION,
    (State.DESCRIPTION, Input.DESCRIPTION_END): State.DONE,
    (State.PREEMPT, Input.PAGE): State.PREEMPT,
    (State.PREEMPT, Input.RAM_END): State.DONE,
}

COMPLETE: Final[frozenset[State]] = frozenset(
    {State.ENDED, State.DONE, State.OPAQUE, State.PREEMPT}
)
"""States in which the connection may end, between elements, without anything being missing.

A preempt channel ends anywhere: only sources before 8.0 close it with an end mark.
"""
