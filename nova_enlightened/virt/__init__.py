# SPDX-License-Identifier: Apache-2.0
"""Nova's libvirt driver, extended; what decides in it needs no Nova."""
