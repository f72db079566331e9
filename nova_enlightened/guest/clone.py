# SPDX-License-Identifier: Apache-2.0
"""Makes a guest that was resumed from a stored appliance a server of its own.

Its memory is that of another machine: name, addresses, random numbers still to come and time are
too. The host says what they are from now on. Each part is done for itself; what fails is told, and
does not keep the others from being done. The host is trusted here: it could change all of this
without asking.
"""

import base64
import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import socket
import struct
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
SIOCSIFFLAGS, SIOCGIFFLAGS = 0x8914, 0x8913
SIOCSIFHWADDR, SIOCGIFHWADDR = 0x8924, 0x8927
IFF_UP = 1
ARPHRD_ETHER = 1
IFNAMSIZ = 16
REQUEST, ACK, DUMP, CREATE, REPLACE = 1, 4, 0x300, 0x400, 0x100
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE = 20, 21, 22, 24
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_OIF, RTA_GATEWAY = 4, 5
NLMSG_ERROR, NLMSG_DONE = 2, 3
SEED_MOST = 1024
HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
MOST_INTERFACES, MOST_ADDRESSES = 16, 16

Said = Dict[str, Any]


class Machine:
    """What is changed. Paths are given so that a test can have others.

    :param sysfs: where interfaces are found. :param etc: where the host name is kept.
    """

    def __init__(self, sysfs: str = "/sys", etc: str = "/etc") -> None:
        self._sysfs = sysfs
        self._etc = etc

    def reseed(self, seed: bytes) -> None:
        """Mix a seed into the kernel's random numbers, and have it use that at once. OSError."""
        packed = struct.pack("ii", len(seed) * 8, len(seed)) + seed
        with open("/dev/urandom", "wb", buffering=0) as file:
            fcntl.ioctl(file, RNDADDENTROPY, packed)
            with contextlib.suppress(OSError):  # before Linux 4.14
                fcntl.ioctl(file, RNDRESEEDCRNG)

    def set_time(self, now: float) -> None:
        """Set the clock, seconds since the epoch. OSError."""
        time.clock_settime(time.CLOCK_REALTIME, now)

    def set_hostname(self, name: str) -> None:
        """Now, and where it can be written also after a reboot. OSError."""
        socket.sethostname(name)
        path = os.path.join(self._etc, "hostname")
        with contextlib.suppress(OSError):
            if os.path.isfile(path):
                with open(path, "w", encoding="ascii") as file:
                    file.write(name + "\n")

    def interfaces(self) -> List[str]:
        """Names of the Ethernet cards, in the order of their place on the bus."""
        top = os.path.join(self._sysfs, "class/net")
        found = []
        for name in os.listdir(top):
            device = os.path.join(top, name, "device")
            if os.path.exists(device):
                found.append((_natural(os.path.realpath(device)), name))
        return [name for _, name in sorted(found)]

    def set_mac(self, name: str, mac: str) -> None:
        """Change a card's address; it is down meanwhile where its driver insists. OSError."""
        wanted = _ifreq(name, struct.pack("H6s", ARPHRD_ETHER, bytes.fromhex(mac.replace(":", ""))))
        with _control() as control:
            old = fcntl.ioctl(control, SIOCGIFHWADDR, _ifreq(name, b""))
            if old[IFNAMSIZ + 2 : IFNAMSIZ + 8] == wanted[IFNAMSIZ + 2 : IFNAMSIZ + 8]:
                return
            try:
                fcntl.ioctl(control, SIOCSIFHWADDR, wanted)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                self._flags(control, name, up=False)
                try:
                    fcntl.ioctl(control, SIOCSIFHWADDR, wanted)
                finally:
                    self._flags(control, name, up=True)

    def set_addresses(self, name: str, addresses: List[str], gateway: Optional[str]) -> None:
        """Have these IPv4 and IPv6 addresses (with prefix), and no other global one. OSError."""
        index = socket.if_nametoindex(name)
        wanted = [ipaddress.ip_interface(one) for one in addresses]
        with _Netlink() as link:
            for old in link.addresses(index):
                if old not in wanted:
                    link.address(RTM_DELADDR, index, old)
            for new in wanted:
                link.address(RTM_NEWADDR, index, new)
            if gateway is not None:
                link.default_route(index, ipaddress.ip_address(gateway))

    @staticmethod
    def _flags(control: socket.socket, name: str, up: bool) -> None:
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, _ifreq(name, b"")),
                                      IFNAMSIZ)  # fmt: skip
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, _ifreq(name, struct.pack("H", flags)))


def become(said: Said, machine: Machine, delay: float = 0.0) -> Said:
    """Do what the host says; which parts were done, and why others were not.

    :param said: ``seed`` (base64), ``time`` (seconds since the epoch), ``hostname``, and
        ``interfaces``: for each card in bus order ``mac``, ``addresses`` and ``gateway``.
    :param delay: seconds since the host said it.
    """
    done: List[str] = []
    failed: Dict[str, str] = {}
    for name, part in _parts(said, machine, delay):
        try:
            part()
            done.append(name)
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            failed[name] = "%s: %s" % (type(error).__name__, error)
    return {"done": done, "failed": failed}


def _parts(said: Said, machine: Machine, delay: float) -> Iterator[Tuple[str, Callable[[], None]]]:
    # Random numbers first: whatever follows may use them.
    if "seed" in said:
        yield "seed", lambda: machine.reseed(_seed(said["seed"]))
    if "time" in said:
        yield "time", lambda: machine.set_time(float(said["time"]) + delay)
    if "hostname" in said:
        yield "hostname", lambda: machine.set_hostname(_hostname(said["hostname"]))
    if "interfaces" in said:
        yield "interfaces", lambda: _cards(said["interfaces"], machine)


def _cards(wanted: Any, machine: Machine) -> None:
    if not isinstance(wanted, list) or len(wanted) > MOST_INTERFACES:
        raise ValueError("not a list of at most %d interfaces" % MOST_INTERFACES)
    names = machine.interfaces()
    if len(names) < len(wanted):
        raise ValueError("%d cards, and %d are told of" % (len(names), len(wanted)))
    for name, card in zip(names, wanted):
        mac = str(card["mac"]).lower()
        addresses = [str(one) for one in card.get("addresses") or []]
        if not MAC.fullmatch(mac) or len(addresses) > MOST_ADDRESSES:
            raise ValueError("card %r" % (card,))
        machine.set_mac(name, mac)
        if addresses:
            machine.set_addresses(name, addresses, card.get("gateway"))


def _seed(text: Any) -> bytes:
    seed = base64.b64decode(str(text), validate=True)
    if not 16 <= len(seed) <= SEED_MOST:
        raise ValueError("a seed of %d bytes" % len(seed))
    return seed


def _hostname(text: Any) -> str:
    if not isinstance(text, str) or not HOSTNAME.fullmatch(text):
        raise ValueError("host name %r" % (text,))
    return text


def _natural(text: str) -> List[Any]:
    """Sorts virtio2 before virtio10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _ifreq(name: str, value: bytes) -> bytes:
    return struct.pack("%ds24s" % IFNAMSIZ, name.encode()[: IFNAMSIZ - 1], value)


@contextlib.contextmanager
def _control() -> Iterator[socket.socket]:
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        yield control
    finally:
        control.close()


class _Netlink:
    """Addresses and routes; `ip` may not be installed, and takes a process for each."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._serial = 0

    def __enter__(self) -> "_Netlink":
        return self

    def __exit__(self, *_: Any) -> None:
        self._socket.close()

    def addresses(self, index: int) -> List[Any]:
        """The global addresses of an interface."""
        found = []
        for kind, body in self._ask(RTM_GETADDR, DUMP, struct.pack("BBBBI", 0, 0, 0, 0, 0)):
            if kind != RTM_NEWADDR:
                continue
            family, prefix, _, scope, owner = struct.unpack_from("BBBBI", body)
            parts = dict(_attributes(body[8:]))
            packed = parts.get(IFA_LOCAL, parts.get(IFA_ADDRESS))
            if owner == index and scope == 0 and packed and family in (2, 10):
                address = ipaddress.ip_address(packed)
                found.append(ipaddress.ip_interface("%s/%d" % (address, prefix)))
        return found

    def address(self, kind: int, index: int, address: Any) -> None:
        """Add one (RTM_NEWADDR), which may be there, or take one away (RTM_DELADDR)."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        head = struct.pack("BBBBI", family, address.network.prefixlen, 0, 0, index)
        packed = address.ip.packed
        body = head + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
        if address.version == 4 and kind == RTM_NEWADDR:
            body += _attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
        self._ask(kind, CREATE | REPLACE if kind == RTM_NEWADDR else 0, body)

    def default_route(self, index: int, gateway: Any) -> None:
        """Send what is for elsewhere to a gateway."""
        family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
        # Of the main table, by hand (protocol static), unicast.
        body = struct.pack("BBBBBBBBI", family, 0, 0, 0, 254, 4, 0, 1, 0)
        body += _attribute(RTA_GATEWAY, gateway.packed)
        body += _attribute(RTA_OIF, struct.pack("I", index))
        self._ask(RTM_NEWROUTE, CREATE | REPLACE, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> List[Tuple[int, bytes]]:
        self._serial += 1
        head = struct.pack("IHHII", 16 + len(body), kind, REQUEST | ACK | flags, self._serial, 0)
        self._socket.send(head + body)
        found: List[Tuple[int, bytes]] = []
        while True:
            data = self._socket.recv(1 << 16)
            while len(data) >= 16:
                size, answer, _, serial, _ = struct.unpack_from("IHHII", data)
                part, data = data[16:size], data[(size + 3) & ~3 :]
                if serial != self._serial:
                    continue
                if answer == NLMSG_ERROR:
                    (code,) = struct.unpack_from("i", part)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                if answer == NLMSG_DONE:
                    return found
                found.append((answer, part))


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return struct.pack("HH", 4 + len(value), kind) + value + b"\0" * padding


def _attributes(data: bytes) -> Iterator[Tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("HH", data)
        if size < 4:
            return
        yield kind, data[4:size]
        data = data[(size + 3) & ~3 :]
