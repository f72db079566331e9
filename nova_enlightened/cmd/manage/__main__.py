# SPDX-License-Identifier: Apache-2.0
"""``python -m nova_enlightened.cmd.manage``."""

import sys

from nova_enlightened.cmd.manage.command import main

sys.exit(main())
