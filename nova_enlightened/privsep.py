# SPDX-License-Identifier: Apache-2.0
"""What the agent of a compute host cannot do as an ordinary user, by oslo.privsep.

Each context is a process of its own that holds no more than the capabilities named here and runs
no more than the functions decorated here. :func:`start` makes them, before there are threads, of
the capabilities that the service was started with, which the service itself then gives up; one
whose capabilities it was not given, as by an older unit, is not made. Where it was started with
none (a command, a test) the contexts are started when first used, by ``helper_command`` of their
group, as oslo.privsep does; as root everything is done in place.
"""

import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Final

from oslo_privsep import capabilities, daemon, priv_context

from nova_enlightened import exception, niceness, process_memory

LOG = logging.getLogger(__name__)

OWN_MODE: Final = 0o711
SHARED_MODE: Final = 0o1771
"""QEMU's group makes its sockets in the directory of migrations; nobody removes another's."""

directories = priv_context.PrivContext(
    "nova_enlightened",
    cfg_section="enlightened_privsep_directories",
    pypath=f"{__name__}.directories",
    capabilities=[
        capabilities.CAP_CHOWN,
        capabilities.CAP_FOWNER,
        capabilities.CAP_DAC_OVERRIDE,
    ],
)
"""To make a directory below ``/run`` that belongs to two."""

scheduling = priv_context.PrivContext(
    "nova_enlightened",
    cfg_section="enlightened_privsep_scheduling",
    pypath=f"{__name__}.scheduling",
    capabilities=[capabilities.CAP_SYS_NICE],
)
"""To have a relay run before what contends for the processor."""

memory = priv_context.PrivContext(
    "nova_enlightened",
    cfg_section="enlightened_privsep_memory",
    pypath=f"{__name__}.memory",
    capabilities=[capabilities.CAP_SYS_PTRACE, capabilities.CAP_DAC_READ_SEARCH],
)
"""To read the memory of a VM that stands still, where its QEMU sends it no more."""

CONTEXTS: Final = (directories, scheduling, memory)


def start() -> None:
    """Start the contexts and give up what they hold; for a service, before it has threads.

    :raises ConfigError: a context does not start.
    """
    if os.geteuid() == 0:
        for context in CONTEXTS:
            context.set_client_mode(False)
        return
    _, held, _ = capabilities.get_caps()
    if not held:
        return
    for context in CONTEXTS:
        lacking = set(context.conf.capabilities) - set(held)
        if lacking:
            LOG.warning("%s is not started: this service lacks %s", context, _names(lacking))
            continue
        try:
            context.start(priv_context.Method.FORK)
        except (daemon.FailedToDropPrivileges, OSError) as error:
            raise exception.ConfigError(f"{context}: {error}") from error
    capabilities.drop_all_caps_except([], [], [])
    LOG.info("Gave up %d capabilities; privileged contexts hold theirs", len(held))


def _names(numbers: Iterable[int]) -> str:
    return ", ".join(sorted(capabilities.CAPS_BYVALUE[number] for number in numbers))


def stop() -> None:
    """End the contexts' processes."""
    for context in CONTEXTS:
        context.stop()


def privileged(context: priv_context.PrivContext) -> bool:
    """Whether its functions can do more than this process could by itself."""
    return not context.client_mode or context.channel is not None


@directories.entrypoint
def make_directory(path: str, owner: int, group: int | None) -> None:
    """Have a directory of ``owner`` that, with a group, its members make files in too.

    Without one it is for its owner to make files in, if it is not there yet. A link, or a
    directory of a third party, is refused.

    :raises OSError: it cannot be had.
    """
    wanted = pathlib.PurePosixPath(path)
    if not wanted.is_absolute() or ".." in wanted.parts:
        raise PermissionError(f"{path} is no absolute path")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        if before.st_uid not in (0, os.getuid(), owner):
            raise PermissionError(f"{path} belongs to uid {before.st_uid}")
        if made or group is not None:
            os.fchown(descriptor, owner, -1 if group is None else group)
            os.fchmod(descriptor, OWN_MODE if group is None else SHARED_MODE)
    finally:
        os.close(descriptor)


@scheduling.entrypoint
def prefer(pid: int, value: int) -> None:
    """Set the niceness of a process of the caller's own user, and that of its autogroup.

    :param value: ``niceness.WAITED_FOR`` to ``niceness.FAIR``.
    :raises OSError: there is no such process, it is another's, or the value is no preference.
    """
    if not niceness.WAITED_FOR <= value <= niceness.FAIR:
        raise PermissionError(f"niceness {value}")
    owner = os.stat(f"/proc/{pid}").st_uid
    if os.getuid() not in (0, owner):
        raise PermissionError(f"process {pid} is uid {owner}'s")
    niceness.renice(pid, value)


def read_memory(pid: int, uuid: str, address: int, length: int) -> bytes:
    """As :func:`.process_memory.read`."""
    read = _read_memory if privileged(memory) else process_memory.read
    return bytes(read(pid, uuid, address, length))


@memory.entrypoint
def _read_memory(pid: int, uuid: str, address: int, length: int) -> bytes:
    return process_memory.read(pid, uuid, address, length)
