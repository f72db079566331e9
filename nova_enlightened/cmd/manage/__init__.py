# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-manage``: what operators ask of an installation, and tell it."""
