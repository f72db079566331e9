# SPDX-License-Identifier: Apache-2.0
"""The in-guest agent: standard library only, packed into one file to copy into a guest."""
