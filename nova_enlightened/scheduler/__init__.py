# SPDX-License-Identifier: Apache-2.0
"""What nova-scheduler loads: a filter and a weigher that keep servers off contended hosts."""
