# SPDX-License-Identifier: Apache-2.0
"""Two networks: a shaped link between the hosts, and one for the guests' own traffic.

* *Migration link*: a veth pair from host1 to host2. libvirt's peer-to-peer control, the
  migration stream and the relays' link use it. Shaped at both ends, each at its egress.
* *Data network*: a bridge in each host and one in ``ctl``, joined by veth pairs, not shaped.
  Guests' redis traffic and progress datagrams use it, so that measuring takes no bandwidth
  from what is measured.
"""

from lab.namespaces import Holder

MIGRATION_DEVICE = "mig0"
MIGRATION_ADDRESS = {"host1": "10.77.0.1", "host2": "10.77.0.2"}
DATA_BRIDGE = "data0"
CONTROL_ADDRESS = "10.78.0.1"
CONTROL_MAC = "52:54:00:6e:65:01"
"""The same in every laboratory: an appliance that was saved in another one still knows it."""
PREFIX = 24

#: tbf's bucket: what may leave at once after a pause. 256 KiB is 5 ms of 400 Mbit/s, and more
#: than one 64 KiB segmentation-offload packet, below which tbf would have to split each.
BURST_BYTES = 256 * 1024
#: Longest wait in tbf's queue; a packet beyond is dropped. Like a data-centre switch port, not
#: like a home router: deep queues would only make plain migrations look worse than they are.
QUEUE_MS = 20


class Link:
    """The migration link between the two hosts."""

    def __init__(self, ends: tuple[Holder, Holder]) -> None:
        self._ends = ends
        self.mbit: float | None = None

    def shape(self, mbit: float | None, delay_ms: float = 0.0) -> None:
        """Hold each direction to ``mbit`` (10^6 bit/s, as seen by IP packets plus Ethernet
        headers); None takes the limit away. ``delay_ms`` (added one way, by netem) needs a
        kernel that has it: raises CommandFailed where not.
        """
        for end in self._ends:
            end.run(["tc", "qdisc", "del", "dev", MIGRATION_DEVICE, "root"], check=False)
            at = ["root", "handle", "1:"]
            if mbit is not None:
                end.run(["tc", "qdisc", "add", "dev", MIGRATION_DEVICE, *at, "tbf",
                         "rate", f"{round(mbit * 1e6)}bit", "burst", str(BURST_BYTES),
                         "latency", f"{QUEUE_MS}ms"])  # fmt: skip
                at = ["parent", "1:1", "handle", "10:"]
            if delay_ms:
                end.run(["tc", "qdisc", "add", "dev", MIGRATION_DEVICE, *at,
                         "netem", "delay", f"{delay_ms}ms", "limit", "10000"])  # fmt: skip
        self.mbit = mbit

    def cut(self) -> None:
        """Let nothing cross, and tell nobody: connections wait, as when a cable is out."""
        for end in self._ends:
            end.run(["ip", "link", "set", MIGRATION_DEVICE, "down"])

    def mend(self) -> None:
        """Undo ``cut``."""
        for end in self._ends:
            end.run(["ip", "link", "set", MIGRATION_DEVICE, "up"])

    def bytes_sent(self) -> dict[str, int]:
        """By host name: bytes that left on the link since ``up``."""
        path = f"/sys/class/net/{MIGRATION_DEVICE}/statistics/tx_bytes"
        return {end.name: int(end.run(["cat", path]).stdout) for end in self._ends}


def connect(control: Holder, hosts: tuple[Holder, Holder]) -> Link:
    """Lay both networks; returns the migration link, not shaped yet."""
    one, two = hosts
    control.run(
        ["ip", "-batch", "-"],
        stdin=f"""
link add {DATA_BRIDGE} address {CONTROL_MAC} type bridge forward_delay 0
addr add {CONTROL_ADDRESS}/{PREFIX} dev {DATA_BRIDGE}
link set {DATA_BRIDGE} up
link add to-{one.name} type veth peer name up0 netns {one.pid}
link add to-{two.name} type veth peer name up0 netns {two.pid}
link set to-{one.name} master {DATA_BRIDGE} up
link set to-{two.name} master {DATA_BRIDGE} up
""",
    )
    one.run(["ip", "link", "add", MIGRATION_DEVICE, "type", "veth", "peer", "name",
             MIGRATION_DEVICE, "netns", str(two.pid)])  # fmt: skip
    for host in hosts:
        host.run(
            ["ip", "-batch", "-"],
            stdin=f"""
link add {DATA_BRIDGE} type bridge forward_delay 0
link set {DATA_BRIDGE} up
link set up0 master {DATA_BRIDGE} up
addr add {MIGRATION_ADDRESS[host.name]}/{PREFIX} dev {MIGRATION_DEVICE}
link set {MIGRATION_DEVICE} up
""",
        )
    return Link(hosts)
