# SPDX-License-Identifier: Apache-2.0
"""The memory of another process."""

import ctypes
import subprocess
import sys

import pytest

from nova_enlightened import process_memory

UUID = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
PLAY = """
import ctypes, sys
said = ctypes.create_string_buffer(b"what the guest knows")
print(ctypes.addressof(said), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def qemu():
    """A process with the words that tell QEMU; where something is in it."""
    words = [sys.executable, "-c", PLAY, "-uuid", UUID]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process, int(process.stdout.readline())


def test_what_is_there_is_read(qemu):
    process, address = qemu
    assert process_memory.read(process.pid, UUID, address, 20) == b"what the guest knows"


def test_a_process_of_another_vm_is_not_read(qemu):
    process, address = qemu
    with pytest.raises(PermissionError, match="is not QEMU of"):
        process_memory.read(process.pid, UUID.replace("6", "7"), address, 4)


def test_what_is_not_mapped_is_an_error(qemu):
    process, _ = qemu
    with pytest.raises(OSError):
        process_memory.read(process.pid, UUID, ctypes.sizeof(ctypes.c_char), 4096)


def test_one_that_has_ended_is_an_error(qemu):
    process, address = qemu
    process.communicate()
    with pytest.raises(OSError):
        process_memory.read(process.pid, UUID, address, 4)
