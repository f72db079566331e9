# SPDX-License-Identifier: Apache-2.0
"""What a guest knows of its own memory, as values (no I/O here)."""
