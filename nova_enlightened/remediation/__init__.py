# SPDX-License-Identifier: Apache-2.0
"""Relieves contended hosts: decides, acts through Nova, verifies, and lets things cool down."""
