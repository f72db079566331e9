# SPDX-License-Identifier: Apache-2.0
"""A server of Nova's as a guest of the laboratory: its work, its probe, where it runs."""

from __future__ import annotations

import base64
import json
import time
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import libvirt
import libvirt_qemu

from lab.errors import LabError
from lab.guests import ping_redis
from lab.hosts import Host
from lab.openstack.furnish import IMAGE, NETWORK
from lab.probe import Probe

if TYPE_CHECKING:
    from lab.openstack.cloud import Cloud

#: guest/init.sh names the series of what it reports after its UUID; a name holds that much.
_SERIES = 15
_AGENT_S = 10
#: Until a guest does what it is told. On an emulated processor that others use too it boots, and
#: fills its memory, slowly.
WORKING_S = 240.0
_RESTART = """\
sed -i '/^LAB_workload=/d; /^LAB_args=/d; /^LAB_name=/d' /etc/lab.env
printf 'LAB_workload={workload}\\nLAB_args={arguments}\\nLAB_name={series}\\n' >> /etc/lab.env
systemctl restart lab-workload.service
"""


class Server:
    """Made by ``create``, or for a server that is there already.

    ``series``: the name under which its guest reports what it does now.
    """

    def __init__(self, cloud: Cloud, uuid: str) -> None:
        self._cloud = cloud
        self._works = 0
        self.uuid = uuid
        self.series = uuid[:_SERIES]

    @classmethod
    def create(
        cls, cloud: Cloud, name: str, host: str | None = None, flavor: str = "m1.lab",
        **wanted: Any,
    ) -> Server:  # fmt: skip
        """A new server, on ``host`` where given; keywords are openstacksdk's ``create_server``,
        ``image_id`` among them: by default it is the laboratory's guest.

        It runs when this returns; its guest begins to boot, or goes on where it was stored.
        Raises LabError where Nova fails.
        """

        def ask(api: Any) -> Any:
            compute = api.compute
            if host is not None:
                wanted["host"] = host
            wanted.setdefault("image_id", api.image.find_image(IMAGE).id)
            made = compute.create_server(
                name=name,
                flavor_id=compute.find_flavor(flavor).id,
                networks=[{"uuid": api.network.find_network(NETWORK).id}],
                **wanted,
            )
            return compute.wait_for_server(made, status="ACTIVE", interval=0.5, wait=120)

        server = cls(cloud, cloud.api.call(ask).id)
        cloud.lab.collector.probe(server.series)
        return server

    @property
    def probe(self) -> Probe:
        """What its guest reports."""
        return self._cloud.lab.collector.probe(self.series)

    @property
    def host(self) -> str:
        """The compute host that Nova has it on."""
        return self._cloud.api.host_of(self.uuid)

    def domain(self) -> tuple[Host, libvirt.virDomain]:
        """Where its processor runs, and the domain there. Raises LabError where nowhere."""
        found = []
        for host in self._cloud.lab.hosts.values():
            try:
                domain = host.connection.lookupByUUIDString(self.uuid)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            if domain.isActive():
                running = domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
                found.append((not running, host, domain))
        if not found:
            raise LabError(f"server {self.uuid} runs nowhere")
        _, host, domain = min(found, key=lambda one: one[0])
        return host, domain

    def work(self, workload: str, *arguments: str, seconds: float = WORKING_S) -> None:
        """Have it do other work, as ``GuestSpec.workload`` names it, and wait until it does.

        Raises LabError where its guest agent, or its workload, does not come in time.
        """
        deadline = time.monotonic() + seconds
        self._restart(workload, arguments, deadline)
        self.probe.wait_running(deadline - time.monotonic())

    def serve(self, seconds: float = WORKING_S) -> None:
        """Have it serve redis, and wait until that answers. Raises LabError where it does not."""
        deadline = time.monotonic() + seconds
        self._restart("redis", (), deadline)
        self.wait_serving(self.own_address(), deadline - time.monotonic())

    def own_address(self) -> str:
        """The address that its guest gives itself at boot, from its card's; see guest/init.sh."""
        xml = ElementTree.fromstring(self.domain()[1].XMLDesc())
        card = xml.find("devices/interface/mac")
        assert card is not None, "every server of the laboratory has a port"
        *_, five, six = (int(part, 16) for part in card.get("address", "").split(":"))
        return f"10.78.{128 + five % 128}.{six}"

    def address(self) -> str:
        """The address that neutron gave its port."""
        addresses = self._cloud.api.server(self.uuid).addresses[NETWORK]
        return str(addresses[0]["addr"])

    def wait_serving(self, address: str, seconds: float) -> float:
        """Until redis answers there; when it did (monotonic s). Raises LabError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self._cloud.lab.control.in_network(lambda: ping_redis(address))
            except OSError:
                time.sleep(0.05)  # nothing tells from outside when a server listens
            else:
                return time.monotonic()
        raise LabError(f"redis at {address} does not answer after {seconds:.0f} s")

    def _restart(self, workload: str, arguments: tuple[str, ...], deadline: float) -> None:
        self._works += 1
        self.series = f"{self.uuid[: _SERIES - 4]}.{self._works}"
        text = _RESTART.format(workload=workload, arguments=",".join(arguments), series=self.series)
        while True:
            try:
                self._execute(text)
                break
            except libvirt.libvirtError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"the agent in {self.uuid}: {error}") from error
                time.sleep(0.5)  # the guest boots; nothing tells when its agent listens

    def hold(self) -> None:
        """Have its work stand still, with all its memory, until ``go_on``."""
        self._execute("systemctl kill --signal=STOP lab-workload.service")

    def go_on(self) -> None:
        """Undo ``hold``."""
        self._execute("systemctl kill --signal=CONT lab-workload.service")

    def boot_id(self) -> str:
        """What Linux in its guest calls this boot; another one has another.

        Raises LabError where its guest agent does not answer.
        """
        _, domain = self.domain()
        asked = {"path": "/proc/sys/kernel/random/boot_id", "mode": "r"}
        try:
            handle = self._ask(domain, "guest-file-open", asked)
            read = self._ask(domain, "guest-file-read", {"handle": handle, "count": 64})
            self._ask(domain, "guest-file-close", {"handle": handle})
        except libvirt.libvirtError as error:
            raise LabError(f"the agent in {self.uuid}: {error}") from error
        return base64.b64decode(read["buf-b64"]).decode().strip()

    @staticmethod
    def _ask(domain: libvirt.virDomain, command: str, arguments: dict[str, Any]) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = libvirt_qemu.qemuAgentCommand(domain, text, _AGENT_S, 0)
        return json.loads(answer)["return"]

    def _execute(self, text: str) -> None:
        _, domain = self.domain()
        arguments = {"path": "/bin/sh", "arg": ["-c", text]}
        command = json.dumps({"execute": "guest-exec", "arguments": arguments})
        libvirt_qemu.qemuAgentCommand(domain, command, _AGENT_S, 0)

    def live_migrate(self, host: str | None = None) -> None:
        """Ask Nova to; it goes on meanwhile."""
        self._cloud.api.call(
            lambda api: api.compute.live_migrate_server(self.uuid, host=host, block_migration=False)
        )

    def delete(self) -> None:
        """Delete it, and wait until it is gone."""

        def ask(api: Any) -> None:
            server = api.compute.get_server(self.uuid)
            api.compute.delete_server(server)
            api.compute.wait_for_delete(server, interval=0.3, wait=60)

        self._cloud.api.call(ask)
