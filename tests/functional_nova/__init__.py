# SPDX-License-Identifier: Apache-2.0
"""Tests on Nova's own functional fixtures, with Nova beside this package: ``make functional-nova``.

Nova's services run in this process, with their API, conductor and scheduler, placement and a
database; libvirt is Nova's fake. They run native threads, as the services do by default.
"""

import os

os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")

# First of all of Nova: it refuses native threads once anything has brought eventlet in.
import nova.tests.functional  # noqa: F401
