# SPDX-License-Identifier: Apache-2.0
"""``openstack server create`` to the first answer of the guest's service, two ways in turn: an
ordinary image that Glance sends over the link, booted, and the same guest as a stored appliance.

Each start is the first of its image on the host, over a link of 100 Mbit/s. The store of the
appliance also has the round trip; Glance's answers have none, which favours it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.cloud import versions
from bench.results import Outcome
from bench.session import Session
from lab.errors import LabError
from lab.far import FarStore
from lab.openstack import appliances
from lab.openstack.cloud import Cloud
from lab.openstack.configuration import Driver
from lab.openstack.furnish import IMAGE
from lab.openstack.servers import Server

MBIT, ROUND_TRIP_MS = 100.0, 10.0
FLAVOR, HOST = "m1.small", "host1"
SERVING_S = 600.0
#: Of the image that is sent whole: it serves as soon as it has booted, as the appliance does.
_SERVES = "lab.workload=redis"
_BUCKET, _QUEUE = "32kb", "50ms"
_STORE = "appliances"
_WAYS = ("server create: image from Glance", "server create: appliance streamed")


class Starts:
    """Both ways on one cloud: ``far`` is the store's link, ``published`` the appliance."""

    def __init__(self, cloud: Cloud, far: FarStore, published: appliances.Published) -> None:
        self.cloud = cloud
        self._far = far
        self._published = published

    def whole(self, number: int) -> float:
        """Seconds until the service answers, with an image that no host has yet."""
        image = self._fresh_image(number)
        try:
            with self._glance_shaped():
                return self._started(f"whole-{number}", image, own_address=True)
        finally:
            self.cloud.api.call(lambda api: api.image.delete_image(image))

    def ours(self, number: int) -> float:
        """The same of the appliance, which no host has anything of."""
        shutil.rmtree(self.cloud.places.run / HOST / "chunks", ignore_errors=True)
        self._far.shape(MBIT, ROUND_TRIP_MS)
        return self._started(f"ours-{number}", self._published.image, own_address=False)

    def _started(self, name: str, image: str, *, own_address: bool) -> float:
        began = time.monotonic()
        server = Server.create(self.cloud, name, HOST, flavor=FLAVOR, image_id=image)
        try:
            address = server.own_address() if own_address else server.address()
            return server.wait_serving(address, SERVING_S) - began
        finally:
            server.delete()

    def _fresh_image(self, number: int) -> str:
        """A copy of the laboratory's image under another id, which serves from its boot on."""
        assert self.cloud.lab.image is not None, "the laboratory is up"
        root = self.cloud.lab.image.root

        def ask(api: Any) -> str:
            of = api.image.find_image(IMAGE)
            wanted = dict(of.properties)
            for name in ("kernel_id", "ramdisk_id", "os_command_line", "hw_machine_type"):
                wanted[name] = of.properties.get(name, getattr(of, name, None))
            wanted["os_command_line"] = str(wanted["os_command_line"]).replace(
                "lab.workload=idle", _SERVES
            )
            names = [name for name in wanted if not name.startswith(("owner", "os_hash", "stores"))]
            made = api.image.create_image(
                name=f"whole-{number}", container_format="bare", disk_format="raw",
                allow_duplicates=True, **{name: wanted[name] for name in names},
            )  # fmt: skip
            with root.open("rb") as content:
                made.data = content
                made.upload(api.image)
            return str(made.id)

        return self.cloud.api.call(ask)

    @contextmanager
    def _glance_shaped(self) -> Iterator[None]:
        """What ctl sends to the host goes at the link's bandwidth."""
        control, device = self.cloud.lab.control, f"to-{HOST}"
        control.run(["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{MBIT:g}mbit",
                     "burst", _BUCKET, "latency", _QUEUE])  # fmt: skip
        try:
            yield
        finally:
            control.run(["tc", "qdisc", "del", "dev", device, "root"], check=False)


@contextmanager
def staged(session: Session) -> Iterator[Starts]:
    """A cloud with a published appliance, a plan learned of one run, and a far store."""
    cloud = Cloud(driver=Driver.ENLIGHTENED, remediated=False, progress=session.tell,
                  extra={"enlightened_scheduler": {"filter_new_servers": False}})  # fmt: skip
    far: FarStore | None = None
    try:
        cloud.up()
        far = FarStore(cloud.lab.hosts[HOST], cloud.places.run, cloud.places.stores,
                       cloud.lab.cache).start(None, 0.0)  # fmt: skip
        session.tell("publishing a server")
        original = Server.create(cloud, "original", HOST, flavor=FLAVOR)
        original.serve()
        published = appliances.publish(cloud, original, "bench", f"{far.url}{_STORE}")
        original.delete()
        starts = Starts(cloud, far, published)
        session.tell("learning from a run that is not measured")
        starts.ours(0)
        appliances.learn(cloud, HOST, published, str(cloud.places.run / HOST / "traces"))
        yield starts
    finally:
        if far is not None:
            far.stop()
        cloud.stop()


def cloud_streaming(session: Session) -> Outcome:
    """Both ways in turn, a pair a round."""
    session.close()
    pairs: list[tuple[float, float]] = []
    notes: list[str] = []
    with staged(session) as starts:
        used = versions(starts.cloud)
        for number in range(1, session.options.rounds + 1):
            session.tell(f"round {number} of {session.options.rounds}")
            try:
                pairs.append((starts.whole(number), starts.ours(number)))
            except LabError as error:
                notes.append(f"round {number}: {error}")
                session.tell(notes[-1])
    return outcome(pairs, used, notes)


def outcome(
    pairs: Sequence[tuple[float, float]], used: Mapping[str, str], notes: Sequence[str]
) -> Outcome:
    """The figure, of the seconds that each round's image and appliance took."""
    runs = [
        {"way": way, "round": number, "first_answer_s": round(seconds, 3)}
        for number, pair in enumerate(pairs, 1)
        for way, seconds in zip(_WAYS, pair, strict=True)
    ]
    ratios = [whole / ours for whole, ours in pairs]
    return Outcome({"stream_lab_create_ratio": ratios}, used, runs, notes)
