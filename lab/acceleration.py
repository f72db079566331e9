# SPDX-License-Identifier: Apache-2.0
"""KVM where it really runs a guest, TCG where not.

A ``/dev/kvm`` that opens proves nothing: there are nested hypervisors under which it opens,
even runs a boot sector, and never gets an ordinary kernel past its first instructions. So the
guest's own kernel is booted as far as its first program, which says so and ends.
"""

import json
import os
import subprocess
from pathlib import Path

from lab.image import ALIVE, GuestImage

_SECONDS = 10.0


def runs_guest(
    image: GuestImage, accelerator: str, qemu: str = "qemu-system-x86_64", seconds: float = _SECONDS
) -> bool:
    """Whether ``qemu`` brings the guest's kernel to its first program in time."""
    command = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256",
        "-accel", accelerator, "-kernel", str(image.kernel), "-initrd", str(image.initrd),
        "-append", "console=ttyS0 quiet panic=-1 lab.probe", "-serial", "stdio",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return ALIVE.encode() in done.stdout


def choose(cache: Path, image: GuestImage) -> str:
    """``"KVM"`` or ``"TCG"``. The verdict is kept until the machine boots again.

    The environment's ``LAB_ACCELERATION`` (kvm or tcg) is believed without a trial.
    """
    wanted = os.environ.get("LAB_ACCELERATION", "").upper()
    if wanted in ("KVM", "TCG"):
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "TCG"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = cache / "acceleration.json"
    try:
        verdict = json.loads(kept.read_text())
        if verdict["boot"] == boot and verdict["found"] in ("KVM", "TCG"):
            return str(verdict["found"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = "KVM" if runs_guest(image, "kvm") else "TCG"
    kept.write_text(json.dumps({"boot": boot, "found": found}))
    return found
