# SPDX-License-Identifier: Apache-2.0
"""What a guest does when it is told that it is a copy."""

import base64
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from nova_enlightened.guest import clone, wire
from nova_enlightened.stream import guest_channel

SEED = base64.b64encode(b"s" * 64).decode()
CARD = {"mac": "FA:16:3E:00:00:01", "addresses": ["192.0.2.7/24"], "gateway": "192.0.2.1"}
WHOLE = {"seed": SEED, "time": 1000.0, "hostname": "web-7", "interfaces": [CARD]}


class Recorded:
    """A machine that says what was done to it."""

    def __init__(self, cards: list[str] | None = None, broken: str = "") -> None:
        self.done: list[tuple[Any, ...]] = []
        self._cards = ["eth0"] if cards is None else cards
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            if name == self._broken:
                raise OSError(1, "Operation not permitted")
            self.done.append((name, *arguments))

        return call

    def interfaces(self) -> list[str]:
        return self._cards


def become(said: Any, machine: Recorded, delay: float = 0.0) -> dict[str, Any]:
    return clone.become(said, machine, delay)  # type: ignore[arg-type]


def test_all_of_it_is_done_random_numbers_first() -> None:
    machine = Recorded()
    told = become(WHOLE, machine, 0.5)
    assert machine.done == [
        ("reseed", b"s" * 64),
        ("set_time", 1000.5),
        ("set_hostname", "web-7"),
        ("set_mac", "eth0", "fa:16:3e:00:00:01"),
        ("set_addresses", "eth0", ["192.0.2.7/24"], "192.0.2.1"),
    ]
    assert told == {"done": ["seed", "time", "hostname", "interfaces"], "failed": {}}


def test_what_fails_keeps_nothing_else_from_being_done() -> None:
    told = become(WHOLE, Recorded(broken="set_time"))
    assert told["done"] == ["seed", "hostname", "interfaces"]
    assert "not permitted" in told["failed"]["time"]


def test_cards_are_told_of_in_the_order_of_the_bus() -> None:
    second = {**CARD, "mac": "fa:16:3e:00:00:02"}
    machine = Recorded(["eth0", "eth1"])
    become({"interfaces": [CARD, second]}, machine)
    macs = [one[1:] for one in machine.done if one[0] == "set_mac"]
    assert macs == [("eth0", "fa:16:3e:00:00:01"), ("eth1", "fa:16:3e:00:00:02")]


def test_a_card_without_addresses_keeps_what_it_has() -> None:
    machine = Recorded()
    become({"interfaces": [{"mac": CARD["mac"], "addresses": []}]}, machine)
    assert [one[0] for one in machine.done] == ["set_mac"]


@pytest.mark.parametrize(
    "said",
    [
        {"seed": "not base64"},
        {"seed": base64.b64encode(b"short").decode()},
        {"seed": base64.b64encode(b"x" * 2000).decode()},
        {"time": "soon"},
        {"hostname": "web 7; reboot"},
        {"hostname": ["web"]},
        {"interfaces": {"mac": 1}},
        {"interfaces": [CARD, CARD]},
        {"interfaces": [{"mac": "fa:16:3e"}]},
        {"interfaces": ["eth0"]},
        {"interfaces": [{**CARD, "addresses": ["192.0.2.7/24"] * 17}]},
    ],
)
def test_nonsense_changes_nothing(said: dict[str, Any]) -> None:
    machine = Recorded()
    told = become(said, machine)
    assert machine.done == []
    assert told["done"] == []
    assert len(told["failed"]) == 1


def test_both_halves_have_one_number_for_it() -> None:
    assert wire.CLONE == guest_channel.MessageType.CLONE
    assert wire.CLONED == guest_channel.MessageType.CLONED


def test_the_cards_of_a_bus_come_in_its_order(tmp_path: pathlib.Path) -> None:
    for name, place in (("ens10", "virtio10"), ("ens2", "virtio2"), ("lo", "")):
        card = tmp_path / "class/net" / name
        card.mkdir(parents=True)
        if place:
            device = tmp_path / "devices/pci0000:00" / place
            device.mkdir(parents=True)
            (card / "device").symlink_to(device)
    assert clone.Machine(str(tmp_path)).interfaces() == ["ens2", "ens10"]


# --- a real kernel's cards, in a network and host name of their own -------------------------------

_INSIDE = """
import json, socket, sys
sys.path.insert(0, sys.argv[1])
from nova_enlightened.guest import clone

class Machine(clone.Machine):
    def interfaces(self):
        return ["v0"]
    def set_time(self, now):
        pass

said = json.loads(sys.argv[2])
told = clone.become(said, Machine(etc=sys.argv[3]))
again = clone.become(said, Machine(etc=sys.argv[3]))
print(json.dumps([told, again, socket.gethostname()]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace: needs root")
def test_a_real_card_gets_its_address_its_number_and_its_route(tmp_path: pathlib.Path) -> None:
    (tmp_path / "hostname").write_text("captured\n")
    top = str(pathlib.Path(clone.__file__).parents[2])
    card = {**CARD, "addresses": ["192.0.2.7/24", "2001:db8::7/64"]}
    said = json.dumps({**WHOLE, "interfaces": [card]})
    script = (
        "ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; "
        "ip addr add 198.51.100.9/24 dev v0; "
        '"$0" -c "$1" "$2" "$3" "$4"; ip -j addr show v0; ip -j route show default'
    )
    done = subprocess.run(
        ["unshare", "--net", "--uts", "sh", "-c", script, sys.executable, _INSIDE, top, said,
         str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    first, addresses, routes = map(json.loads, done.stdout.strip().splitlines())
    assert first[0] == first[1]
    assert first[0]["failed"] == {}
    assert first[2] == "web-7"
    assert (tmp_path / "hostname").read_text() == "web-7\n"
    (link,) = addresses
    assert link["address"] == "fa:16:3e:00:00:01"
    got = {one["local"] for one in link["addr_info"] if one["scope"] == "global"}
    assert got == {"192.0.2.7", "2001:db8::7"}
    assert routes[0]["gateway"] == "192.0.2.1"


@pytest.mark.skipif(os.geteuid() != 0, reason="asks the kernel: needs root")
def test_a_real_kernel_takes_the_seed() -> None:
    clone.Machine().reseed(os.urandom(64))
