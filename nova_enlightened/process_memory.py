# SPDX-License-Identifier: Apache-2.0
"""Reads the memory of a VM's QEMU from outside, which needs ``CAP_SYS_PTRACE``."""

import itertools
import os
import pathlib


def read(pid: int, uuid: str, address: int, length: int) -> bytes:
    """What is there in the QEMU of a VM. Of any other process nothing is told.

    :param uuid: the VM's, which its QEMU's command line has.
    :raises OSError: it is another process, it has ended, or that is not its memory.
    """
    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if (b"-uuid", uuid.encode()) not in itertools.pairwise(words):
        raise PermissionError(f"process {pid} is not QEMU of {uuid}")
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.pread(descriptor, length, address)
    finally:
        os.close(descriptor)
    if len(found) != length:
        raise OSError(f"{len(found)} of {length} bytes at {address:#x} of process {pid}")
    return found
