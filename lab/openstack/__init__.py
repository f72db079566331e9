# SPDX-License-Identifier: Apache-2.0
"""The laboratory's second floor: a real OpenStack whose two compute hosts are the first floor's.

``Cloud`` is the whole interface; ``python -m lab.openstack`` is the same from a shell.
"""

from lab.openstack.cloud import Cloud

__all__ = ["Cloud"]
