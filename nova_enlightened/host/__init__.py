# SPDX-License-Identifier: Apache-2.0
"""The compute host's side: guest channels, relay processes, evictions through libvirt."""
