# SPDX-License-Identifier: Apache-2.0
"""Whether the guests of a host hinder each other, and which of them should leave."""
