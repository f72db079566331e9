# SPDX-License-Identifier: Apache-2.0
"""Side-by-side measurements: every figure in the documentation comes from here."""
