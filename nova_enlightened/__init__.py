# SPDX-License-Identifier: Apache-2.0
"""Move a virtual machine fast by knowing what it is executing."""
