# SPDX-License-Identifier: Apache-2.0
"""Whether guests of this host can leave and arrive by ordered post-copy, and why not."""

import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final
from xml.etree import ElementTree

SYSCTL: Final = "/proc/sys/vm/unprivileged_userfaultfd"
DEVICE: Final = "/dev/userfaultfd"

Read = Callable[[str], str | None]


def qemu_user(capabilities: str) -> tuple[int, int] | None:
    """(uid, gid) that libvirt runs QEMU as, from its capabilities; None where it does not say."""
    try:
        tree = ElementTree.fromstring(capabilities)
    except ElementTree.ParseError:
        return None
    for model in tree.iterfind("./host/secmodel"):
        if model.findtext("model") != "dac":
            continue
        for label in model.iterfind("baselabel"):
            user, _, group = (label.text or "").partition(":")
            if user[:1] == "+" and group[:1] == "+":
                if user[1:].isdecimal() and group[1:].isdecimal():
                    return int(user[1:]), int(group[1:])
    return None


def userfaultfd_obstacle(
    user: tuple[int, int] | None, read: Read, status: Callable[[str], os.stat_result] = os.stat
) -> str | None:
    """Why QEMU cannot wait for pages (userfaultfd); None where it can.

    Any user may with the sysctl, and root without it. Newer QEMU (8.1) opens a device instead.
    """
    setting = read(SYSCTL)
    if setting is None or setting.strip() == "1":
        return None  # kernels without the setting (before 5.2) allow it to everybody
    if user is None or user[0] == 0:
        return None
    try:
        device = status(DEVICE)
    except OSError:
        device = None
    if (
        device is not None
        and stat.S_ISCHR(device.st_mode)
        and permits(device, user, stat.S_IROTH | stat.S_IWOTH)
    ):
        return None
    return "QEMU may not use userfaultfd: set sysctl vm.unprivileged_userfaultfd = 1 on this host"


def permits(status: os.stat_result, user: tuple[int, int], wanted: int) -> bool:
    """Whether a file's mode lets another user (uid, gid) do something.

    :param wanted: what, as mode bits of *others*; of owner and group, theirs count.
    """
    if user[0] == 0:
        return True
    if status.st_uid == user[0]:
        wanted <<= 6
    elif status.st_gid == user[1]:
        wanted <<= 3
    return status.st_mode & wanted == wanted


def obstacles(options: Any, user: tuple[int, int] | None, read: Read) -> Iterator[str]:
    """What stands in the way of ordered post-copy on this host, in words.

    :param options: the group ``[enlightened]``.
    """
    kernel = userfaultfd_obstacle(user, read)
    if kernel is not None:
        yield kernel
    if not os.access(options.run_directory, os.W_OK | os.X_OK):
        yield f"[enlightened] run_directory = {options.run_directory} cannot be written"
    if options.link_tls == "off":
        return
    for name in ("link_tls_ca", "link_tls_certificate", "link_tls_key"):
        if not os.access(options[name], os.R_OK):
            yield f"[enlightened] {name} = {options[name]} cannot be read"
