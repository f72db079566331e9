# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: one parser a target, one function a target.

A target takes any bytes. It may raise nothing: it catches the errors that its parser documents,
and asserts what must hold besides (mostly that bytes in pieces mean what they mean in one).
"""

import dataclasses
import hashlib
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Final

ROOT: Final = pathlib.Path(__file__).parents[1]
CORPUS: Final = ROOT / "corpus"
CRASHES: Final = ROOT / "crashes"
"""Inputs that broke a parser once."""
OPEN: Final = ROOT / "open"
"""Inputs that still break one."""

OneInput = Callable[[bytes], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """One parser.

    ``name``: also of its corpus's directory. ``where``: ``module:function``,
    loaded only when it is needed, so that a fuzzing process traces one parser and not all.
    ``longest``: bytes of the longest input tried.
    """

    name: str
    where: str
    longest: int

    def load(self) -> OneInput:
        """The function."""
        found: OneInput = pkgutil.resolve_name(self.where)
        return found

    def findings(self) -> list[pathlib.Path]:
        """Inputs that break the parser as it is: to fuzz it finds nothing else."""
        return sorted((OPEN / self.name).glob("*"))

    def inputs(self) -> list[pathlib.Path]:
        """Kept inputs: the corpus, and whatever was ever found to break it."""
        return sorted(
            path
            for directory in (CORPUS, CRASHES)
            for path in (directory / self.name).glob("*")
            if path.is_file()
        )


TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        Target("migration", f"{__name__}.streams:migration", 9216),
        Target("return_path", f"{__name__}.streams:return_path", 2048),
        Target("link_frames", f"{__name__}.link:frames", 6144),
        Target("link_handshake", f"{__name__}.link:handshake", 2560),
        Target("link_session", f"{__name__}.link:session", 4096),
        Target("guest_channel", f"{__name__}.guest:channel", 4096),
        Target("guest_answers", f"{__name__}.guest:answers", 8192),
        Target("snapshot", f"{__name__}.guest:snapshot", 8192),
        Target("stored_knowledge", f"{__name__}.host:stored_knowledge", 4096),
        Target("domain_xml", f"{__name__}.host:domain_memory", 6144),
        Target("relay_spec", f"{__name__}.host:relay_spec", 4096),
        Target("control_line", f"{__name__}.host:control_line", 4096),
        Target("fault_trace", f"{__name__}.host:fault_trace", 4096),
        Target("nbd", f"{__name__}.nbd:server", 2048),
        Target("save_header", f"{__name__}.nbd:save_header", 2048),
        Target("stored_stream", f"{__name__}.nbd:stored_stream", 9216),
        Target("manifest", f"{__name__}.appliance:manifest", 4096),
        Target("chunk_index", f"{__name__}.appliance:chunk_index", 4096),
        Target("table_of_units", f"{__name__}.appliance:table_of_units", 2048),
        Target("prefetch_plan", f"{__name__}.appliance:prefetch_plan", 2048),
        Target("player_spec", f"{__name__}.host:player_spec", 4096),
        Target("appliance_trace", f"{__name__}.appliance:appliance_trace", 2048),
    )
}


def loaded_source() -> str:
    """A digest of all modules of this project that this process has loaded."""
    digest = hashlib.sha256()
    for module in sorted(sys.modules):
        path = getattr(sys.modules[module], "__file__", None)
        if module.startswith(("nova_enlightened", "tests.fuzz.targets")) and path:
            digest.update(pathlib.Path(path).read_bytes())
    return digest.hexdigest()
