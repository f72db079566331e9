# SPDX-License-Identifier: Apache-2.0
"""A laboratory: two real libvirt/QEMU hosts on one machine, guests that work, and a stopwatch.

``Lab`` is the whole interface; ``python -m lab`` is the same from a shell.
"""

from lab.laboratory import Lab

__all__ = ["Lab"]
