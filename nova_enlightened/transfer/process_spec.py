# SPDX-License-Identifier: Apache-2.0
"""What a relay and a player have in common: processes with a run directory of their own.

Whoever starts one writes its specification there; it keeps its state there for all to read.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from nova_enlightened import whole_file

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """What the process is told when it starts, as a JSON document.

    :param run_directory: private directory of this process.
    """

    run_directory: str

    @property
    def path(self) -> str:
        """The specification itself."""
        return os.path.join(self.run_directory, "spec.json")

    @property
    def control(self) -> str:
        """The control socket."""
        return os.path.join(self.run_directory, "control.sock")

    @property
    def state(self) -> str:
        """The state file."""
        return os.path.join(self.run_directory, "state.json")

    def to_json(self) -> str:
        """For ``from_json``. What is as it would be unsaid is left out: an older peer may not know
        the word.
        """
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        said = dataclasses.asdict(self)
        return json.dumps({word: said[word] for word in said if said[word] != usual[word]})

    def save(self, directory: pathlib.Path) -> None:
        """Write to the run directory (as seen from here), readable by the owner only."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole_file.write(directory / os.path.basename(self.path), self.to_json())

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write what the process is doing; a reader sees the old or the new, whole."""
        try:
            whole_file.write(self.state, json.dumps(state))
        except OSError as error:
            LOG.warning("State not written: %s", error)
