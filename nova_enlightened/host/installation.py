# SPDX-License-Identifier: Apache-2.0
"""Whether this host is set up as it has to be: each finding with what to do about it.

Looking and judging are apart. What is passed in is what was found on the host; nothing here asks
libvirt, the bus or Nova.
"""

import contextlib
import dataclasses
import enum
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from nova_enlightened.host import capability


class Grade(enum.IntEnum):
    """How a finding is to be taken."""

    OK = 0
    WARN = 1
    """It works, but not all of it, or not for long."""
    FAIL = 2
    """Guests cannot leave or arrive in their order."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the check.

    :param what: was looked at; `words`: what was found.
    :param remedy: what to do, empty where there is nothing to.
    """

    what: str
    grade: Grade
    words: str
    remedy: str = ""


def ok(what: str, words: str) -> Finding:
    """A good finding."""
    return Finding(what, Grade.OK, words)


def warn(what: str, words: str, remedy: str) -> Finding:
    """A finding that leaves something to be desired."""
    return Finding(what, Grade.WARN, words, remedy)


def fail(what: str, words: str, remedy: str) -> Finding:
    """A finding that is an obstacle."""
    return Finding(what, Grade.FAIL, words, remedy)


# -- the kernel ---------------------------------------------------------------------------------


def userfaultfd(user: tuple[int, int] | None, read: capability.Read) -> Finding:
    """Whether QEMU may wait for pages.

    :param user: (uid, gid) that QEMU runs as, None where not known.
    """
    what = "userfaultfd"
    obstacle = capability.userfaultfd_obstacle(user, read)
    if obstacle is not None:
        return fail(
            what,
            "QEMU's user may not use it, so no guest can arrive by post-copy",
            "sysctl -w vm.unprivileged_userfaultfd=1, and the same in /etc/sysctl.d to keep it",
        )
    if user is None:
        return warn(
            what,
            "nothing forbids it, but which user QEMU runs as is not known",
            "run this where libvirt can be reached, or see that the user of QEMU may use it",
        )
    return ok(what, f"QEMU (uid {user[0]}) may use it")


# -- the directory of sockets -------------------------------------------------------------------

LONGEST_DIRECTORY: Final = 107 - len("/-destination/control.sock") - 36
"""Bytes: a unix socket's path holds 107, and the longest is of a migration (36) in it."""
APPARMOR: Final = "/sys/module/apparmor/parameters/enabled"
APPARMOR_LOCAL: Final = (
    "/etc/apparmor.d/local/abstractions/libvirt-qemu",
    "/etc/apparmor.d/abstractions/libvirt-qemu",
    "/etc/apparmor.d/abstractions/libvirt-qemu.d/nova-enlightened",
)
LIBVIRT_QEMU_CONF: Final = "/etc/libvirt/qemu.conf"


def run_directory(path: str, user: tuple[int, int] | None) -> Iterator[Finding]:
    """Whether relays can keep their sockets there, and QEMU reach them."""
    what = "run_directory"
    if len(path.encode()) > LONGEST_DIRECTORY:
        yield fail(
            what,
            f"{path} is too long for the sockets in it",
            f"[enlightened] run_directory: at most {LONGEST_DIRECTORY} bytes, everywhere the same",
        )
    try:
        status = os.stat(path)
    except OSError as error:
        yield fail(
            what,
            f"{path}: {error.strerror}",
            f"start nova-enlightened-agent, which makes it, or mkdir -p {path}",
        )
        return
    if not stat.S_ISDIR(status.st_mode):
        yield fail(what, f"{path} is no directory", "[enlightened] run_directory: name another")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield fail(
            what, f"{path} cannot be written by this user", f"chown it to uid {os.geteuid()}"
        )
    elif user is not None and not capability.permits(status, user, stat.S_IWOTH | stat.S_IXOTH):
        yield fail(
            what,
            f"QEMU (uid {user[0]}, gid {user[1]}) cannot make sockets in {path}",
            f"chgrp {user[1]} {path} && chmod 1771 {path}; the agent does so when it starts",
        )
    else:
        yield ok(what, path)


def apparmor(path: str, read: capability.Read) -> Finding:
    """Whether AppArmor keeps QEMU from the sockets of relays. libvirt's profile for each guest
    (virt-aa-helper) allows what the domain names, and a migration's socket is not in it.

    :param path: the run directory.
    """
    what = "AppArmor"
    if (read(APPARMOR) or "").strip() != "Y":
        return ok(what, "not enabled")
    for line in (read(LIBVIRT_QEMU_CONF) or "").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "security_driver" and "none" in value:
            return ok(what, "libvirt does not use it (security_driver)")
    if any(path in (read(file) or "") for file in APPARMOR_LOCAL):
        return ok(what, f"the profile of guests allows {path}")
    return warn(
        what,
        f"it is enabled, and no rule allows guests' QEMU {path}",
        f"echo '{path}/*.sock rw,' >> {APPARMOR_LOCAL[0]}",
    )


# -- ports --------------------------------------------------------------------------------------


def ports(address: str, first: int, last: int) -> Finding:
    """Whether relays of guests that arrive could listen, found out by doing so for a moment."""
    what = "link ports"
    asked = range(first, last + 1)
    free, why = 0, ""
    for port in asked:
        try:
            _listen(address, port)
            free += 1
        except OSError as error:
            why = error.strerror or str(error)
    words = f"{free} of {len(asked)} ports free at {address}:{first}-{last}"
    if not free:
        return fail(
            what,
            f"{words}: {why}",
            "[enlightened] link_address has to be one of this host; see what holds the ports "
            "(ss -ltnp), or move link_port_min and link_port_max",
        )
    if free < len(asked):
        return warn(what, words, "some hold guests that arrive; see what holds others (ss -ltnp)")
    return ok(what, words)


def _listen(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(1)


# -- versions -----------------------------------------------------------------------------------

SEEN: Final = {"QEMU": (7, 2), "libvirt": (9, 0)}
"""The oldest that are tested."""


def versions(found: Mapping[str, str | None]) -> Iterator[Finding]:
    """Of the programs and packages that matter.

    :param found: name -> version, None where there is none. ``QEMU`` and ``libvirt`` are judged.
    """
    for name, version in found.items():
        oldest = SEEN.get(name)
        if version is None:
            yield warn(name, "not in this Python environment", "compute hosts need it")
        elif oldest is not None and _numbers(version) < oldest:
            yield warn(
                name,
                f"{version} is older than what is tested",
                f"use {'.'.join(map(str, oldest))} or later",
            )
        else:
            yield ok(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)


def nova(
    spec: Callable[[str], Any], permits_post_copy: bool | None, driver: str
) -> Iterator[Finding]:
    """Whether nova-compute loads this project's driver and lets it do its work.

    :param spec: ``importlib.util.find_spec``, or one that answers like it.
    :param permits_post_copy: ``[libvirt] live_migration_permit_post_copy``, None where Nova's
        configuration was not read.
    :param driver: ``[DEFAULT] compute_driver``.
    """
    ours = "enlightened.EnlightenedLibvirtDriver"
    what = "nova-compute"
    if spec("nova") is None:
        yield warn(
            what,
            "Nova is not in this Python environment",
            "install this package beside Nova on compute hosts",
        )
    elif spec("nova.virt.enlightened") is None:
        yield warn(
            what,
            "the driver is not where nova-compute looks for it",
            "start nova-enlightened-compute in place of nova-compute",
        )
    else:
        yield ok(what, "it finds the driver")
    if permits_post_copy is None:
        return
    if driver != ours:
        yield fail("compute_driver", f"it is {driver or 'not set'}", f"set it to {ours}")
    else:
        yield ok("compute_driver", ours)
    if not permits_post_copy:
        yield fail(
            "post-copy",
            "Nova does not permit it",
            "[libvirt] live_migration_permit_post_copy = true, on all hosts",
        )
    else:
        yield ok("post-copy", "Nova permits it")


# -- the agent ----------------------------------------------------------------------------------


def agent(answer: Mapping[str, Any], version: str | None) -> Iterator[Finding]:
    """What the agent of this host says of itself (``rpc.HostAPI.describe``).

    :param version: of this package, which the agent's should be.
    """
    what = "agent"
    theirs = str(answer.get("version"))
    if version is not None and theirs != version:
        yield warn(what, f"it runs {theirs}, installed is {version}", "restart it; guests stay")
    else:
        yield ok(what, f"answers, {theirs}")
    obstacles = answer.get("obstacles") or ()
    for obstacle in obstacles:
        yield fail(what, str(obstacle), "see the findings above; then restart the agent")
    if not obstacles and not answer.get("capable"):
        yield fail(what, "it says that guests cannot leave in order", "see its log")
    if answer.get("level") is None:
        yield warn(what, "it has no sample of this host yet", "see its log: libvirt may be down")


def worst(findings: Iterable[Finding]) -> Grade:
    """The gravest of findings."""
    return max((found.grade for found in findings), default=Grade.OK)
