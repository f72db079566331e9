# SPDX-License-Identifier: Apache-2.0
"""The relay: carries one migration between two hosts and asks for pages in plan order."""
