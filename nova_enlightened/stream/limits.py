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
