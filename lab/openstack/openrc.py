# SPDX-License-Identifier: Apache-2.0
"""A file to source: then ``openstack`` talks to the cloud."""

from __future__ import annotations

import shlex

from lab.openstack.configuration import account
from lab.openstack.places import Places


def write(places: Places, control_pid: int) -> None:
    """Write ``openrc`` into the run directory. ``control_pid`` holds ctl's network."""
    options = account("admin").items()
    lines = [
        "# To source. The cloud's addresses exist in a network namespace only, so `openstack` is",
        "# a function that enters it; it needs root. `incloud` runs any command in there.",
        *(f"export OS_{name.upper()}={shlex.quote(str(value))}" for name, value in options),
        "export OS_IDENTITY_API_VERSION=3",
        f'incloud() {{ nsenter --net --target {control_pid} -- "$@"; }}',
        f'openstack() {{ incloud {shlex.quote(places.program("openstack"))} "$@"; }}',
    ]
    (places.run / "openrc").write_text("\n".join(lines) + "\n")
