# SPDX-License-Identifier: Apache-2.0
"""Sans-IO codecs: QEMU's migration stream, its return path, the relay link, the guest channel."""
