# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the laboratory."""


class LabError(Exception):
    """The laboratory could not do what it was asked; the text says what to look at."""


class CommandFailed(LabError):
    """A command that the laboratory ran ended with an error.

    ``command`` is its words, ``status`` its exit status, ``output`` what it wrote.
    """

    def __init__(self, command: list[str], status: int, output: str) -> None:
        self.command = command
        self.status = status
        self.output = output
        super().__init__(f"{' '.join(command)}: status {status}\n{output[-2000:]}")
