# SPDX-License-Identifier: Apache-2.0
"""Which pages should cross first: plans, ordering policies, the injector (no I/O here)."""
