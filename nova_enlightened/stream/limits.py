# SPDX-License-Identifier: Apache-2.0
"""Bounds on every length the wire may name, checked before anything is kept for it."""

MAX_MACHINE_NAME = 1024
"""Bytes of the machine type's name in the configuration section; QEMU's are under 40."""

MAX_CAPABILITIES = 256
"""Capabilities listed in the configuration section; QEMU 10.0 knows 23 in all."""

MAX_RAM_BLOCKS = 4096
"""RAM blocks listed by the RAM setup; a large guest has tens."""

MAX_RAM_BYTES = 1 << 46
"""Sum of all RAM blocks: 64 TiB."""

MAX_COMMAND_BYTES = 0xFFFF
"""Data of one command: its length field has 16 bits."""

MAX_RETURN_PATH_MESSAGE = 512
"""Body of a return path message: the buffer QEMU's source reads it into."""

MAX_BITMAP_GUEST_BYTES = 1 << 40
"""A block whose received-bitmap may be announced: 1 TiB of guest RAM."""

MAX_BITMAP_BYTES = MAX_BITMAP_GUEST_BYTES // 4096 // 8
"""The same in bytes of bitmap: one bit a page, 32 MiB."""

MAX_DEVICE_STATE = 256 << 20
"""Device state of a stored stream; a virtual machine without passthrough has a few MiB."""

MAX_DESCRIPTION = 16 << 20
"""JSON text that describes the devices behind a pre-copy stream; usually 20 to 200 KiB."""

MAX_RAM_A_BYTE = 4096
"""Bytes of RAM that one byte of a stored stream can stand for at most: a page of zeros takes 9,
and one that is free may be left out where the guest says so. Keeps a short stream from claiming
terabytes.
"""

MAX_SAVE_HEADER = 32 << 20
"""Domain XML and cookie at the beginning of a file that libvirt saved; 70 KiB with its padding."""
