# SPDX-License-Identifier: Apache-2.0
"""From knowledge to an order of pages: ordering policies, the injection window, the simulator."""
