# SPDX-License-Identifier: Apache-2.0
"""Stored appliances: what they consist of, what runs of them touch, what to fetch next."""
