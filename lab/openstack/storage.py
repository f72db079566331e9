# SPDX-License-Identifier: Apache-2.0
"""The instances' shared storage: one GlusterFS volume with one brick, mounted in both hosts.

libvirt migrates only what is on a file system it knows to be shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from lab.errors import LabError
from lab.namespaces import Holder
from lab.openstack.places import Places

_VOLUME = "instances"

# $1 directory for what gluster writes, $2 directory of its own state ("" in the hosts).
_OWN = """
set -e
mkdir -p "$1" /run/gluster /var/log/glusterfs /var/lib/glusterd
mount --bind "$1" /var/log/glusterfs
if [ -n "$2" ]; then
    mkdir -p "$2"
    mount --bind "$2" /var/lib/glusterd
fi
"""


def own_directories(places: Places, holder: Holder, *, serves: bool) -> None:
    """Give gluster in there files of its own. Before glusterd starts, or a client mounts."""
    state = str(places.data / "glusterd") if serves else ""
    logs = str(places.run / "log" / f"{holder.name}-gluster")
    holder.run(["sh", "-c", _OWN, "sh", logs, state])


def volume(places: Places, control: Holder) -> None:
    """Make the volume, if it is not there, and start it."""
    brick = places.data / "brick"
    gluster = ["gluster", "--mode=script"]
    if _VOLUME not in control.run([*gluster, "volume", "list"], check=False).stdout.split():
        brick.mkdir(parents=True, exist_ok=True)
        control.run([*gluster, "volume", "create", _VOLUME, f"ctl:{brick}", "force"])
        for option in ("network.ping-timeout=10", "performance.client-io-threads=on"):
            control.run([*gluster, "volume", "set", _VOLUME, *option.split("=")])
        control.run([*gluster, "volume", "start", _VOLUME])
    # glusterd starts the brick of a volume that was started before; this says when that is done.
    told = control.run([*gluster, "volume", "start", _VOLUME, "force"], check=False)
    if told.returncode:
        raise LabError(f"gluster does not start the volume: {told.stdout}")


def mount(places: Places, hosts: Iterable[Holder]) -> None:
    """Mount the volume in every host. Raises LabError where that fails."""
    for host in hosts:
        where = str(places.instances)
        host.run(["mount", "-t", "glusterfs", f"ctl:/{_VOLUME}", where], check=False)
        found = host.run(["findmnt", "-n", "-o", "FSTYPE", where], check=False)
        if "fuse.glusterfs" not in found.stdout:
            log = places.run / "log" / f"{host.name}-gluster"
            raise LabError(f"{host.name} cannot mount the shared volume: look into {log}")


@contextmanager
def own(places: Places, hosts: Iterable[Holder]) -> Iterator[None]:
    """A directory of each host's own in the volume's place, until the block ends.

    What has files open in there by then keeps it mounted, out of sight, until it ends too.
    """
    where = str(places.instances)
    with ExitStack() as stack:
        for host in hosts:
            directory = host.directory / "instances"
            directory.mkdir(exist_ok=True)
            host.run(["mount", "--bind", str(directory), where])
            stack.callback(host.run, ["umount", "--lazy", where])
        yield
