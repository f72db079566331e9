# SPDX-License-Identifier: Apache-2.0
"""``nova-enlightened-compute``: ``nova-compute``, able to load this project's driver.

It takes the arguments and files of ``nova-compute``. It is needed where Nova is not in the same
``site-packages`` as this package; elsewhere ``nova-compute`` finds the driver by itself.
"""

import sys

from nova_enlightened import exception
from nova_enlightened.virt import loading


def main() -> int:
    """Run until stopped; the exit status."""
    try:
        loading.run_compute()
    except exception.ConfigError as error:
        print(f"nova-enlightened-compute: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
