# SPDX-License-Identifier: Apache-2.0
"""Tests on a real Nova with two compute hosts; ``conftest`` has the one cloud they share."""
