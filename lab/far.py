# SPDX-License-Identifier: Apache-2.0
"""A far store: nginx in a namespace of its own, behind a link with bandwidth and a round trip.

The link goes to one host only, and carries nothing else. Its bandwidth is tbf's, at both ends;
its delay is ``delay.c``'s, as not every kernel has netem. Packets are of 1,500 bytes, and TCP is
the kernel's own.
"""

import hashlib
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np

from lab.errors import LabError
from lab.hosts import Host
from lab.namespaces import Holder
from lab.processes import run, wait_for_file

DEVICE = "far0"
STORE_ADDRESS, HOST_ADDRESS = "10.79.0.1", "10.79.0.2"
MTU = 1500
_LOOK_S = 0.05
BURST_BYTES = 32 * 1024
QUEUE_MS = 50
"""Longest wait in a link's queue: more than a round trip of the links measured."""

_SOURCE = Path(__file__).resolve().parent / "delay.c"
_NGINX = """\
worker_processes 1;
daemon off;
user root;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 80;
        location / {{ root {root}; }}
    }}
}}
"""


class FarStore:
    """Serves the files of ``root`` to ``host``. Ends with its laboratory, or when stopped.

    ``cache`` is where the delaying program is kept once it was compiled.
    """

    def __init__(self, host: Host, run_dir: Path, root: Path, cache: Path) -> None:
        self._host = host
        self._holder = Holder("far", run_dir)
        self._cache = cache
        self._delay: subprocess.Popen[bytes] | None = None
        self._nginx: subprocess.Popen[bytes] | None = None
        self.root = root

    @property
    def url(self) -> str:
        """Where ``host`` finds the root; ends with a slash."""
        return f"http://{STORE_ADDRESS}/"

    def start(self, mbit: float | None, round_trip_ms: float) -> Self:
        """Start nginx and lay the link. Raises LabError or CommandFailed where one is missing."""
        self._holder.start(self._host.holder.token)
        self.root.mkdir(parents=True, exist_ok=True)
        configuration = self._holder.directory / "nginx.conf"
        text = _NGINX.format(directory=self._holder.directory, root=self.root)
        configuration.write_text(text)
        self._nginx = subprocess.Popen(
            self._holder.entered(["nginx", "-c", str(configuration)]),
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if not wait_for_file(self._holder.directory / "nginx.pid", 10.0, self._nginx):
            raise LabError("nginx did not start: is the package nginx-light there?")
        self.shape(mbit, round_trip_ms)
        return self

    def shape(self, mbit: float | None, round_trip_ms: float) -> None:
        """Lay the link anew: ``mbit`` (10^6 bit/s of IP packets; None: unlimited) each way, and
        ``round_trip_ms`` until an answer can be there. Connections over the old one are dead.
        """
        self._cut()
        one, two = self._holder, self._host.holder
        self._delay = subprocess.Popen(
            one.entered([str(delay_program(self._cache)), str(one.pid), DEVICE, str(two.pid),
                         DEVICE, str(round(round_trip_ms * 500))]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert self._delay.stdout is not None
        assert self._delay.stderr is not None
        if not self._delay.stdout.readline():
            raise LabError(f"no link with a delay: {self._delay.stderr.read().decode().strip()}")
        for holder, address in ((one, STORE_ADDRESS), (two, HOST_ADDRESS)):
            holder.run(["ip", "addr", "add", f"{address}/24", "dev", DEVICE])
            holder.run(["ip", "link", "set", DEVICE, "mtu", str(MTU), "up"])
            if mbit is not None:
                holder.run(["tc", "qdisc", "add", "dev", DEVICE, "root", "tbf",
                            "rate", f"{round(mbit * 1e6)}bit", "burst", str(BURST_BYTES),
                            "latency", f"{QUEUE_MS}ms"])  # fmt: skip

    def bytes_sent(self) -> int:
        """Bytes that left the store on this link, headers with them, since it was laid."""
        for line in Path(f"/proc/{self._holder.pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.strip().partition(":")
            if name == DEVICE:
                return int(numbers.split()[8])
        raise LabError("the link is cut")

    def stop(self) -> None:
        """End nginx and the link."""
        self._cut()
        nginx, self._nginx = self._nginx, None
        if nginx is not None:
            nginx.terminate()
            nginx.wait(10)

    def _cut(self) -> None:
        delay, self._delay = self._delay, None
        if delay is not None:
            delay.terminate()
            delay.wait(10)
            for stream in (delay.stdout, delay.stderr):
                if stream is not None:
                    stream.close()


def delay_program(cache: Path) -> Path:
    """The compiled ``delay.c``, made where it is not in ``cache`` yet."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    target = cache / f"delay-{digest}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half = target.with_suffix(".new")
        run(["gcc", "-O2", "-static", "-s", "-o", str(half), str(_SOURCE)])
        half.rename(target)
    return target


class Meter:
    """What comes over a far store's link, by time, from ``start`` to ``stop``."""

    def __init__(self, store: FarStore) -> None:
        self._store = store
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._times: list[float] = []
        self._bytes: list[int] = []

    def start(self) -> Self:
        """Begin to count."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; what was counted stays."""
        self._enough.set()
        self._thread.join()

    def at(self, when: float) -> float:
        """Bytes since the start, by ``when`` (monotonic s); between two looks, evenly."""
        if not self._times:
            return 0.0
        return float(np.interp(when, self._times, self._bytes)) - self._bytes[0]

    def _sample(self) -> None:
        while True:
            counted = self._store.bytes_sent()
            self._bytes.append(counted)
            self._times.append(time.monotonic())
            if self._enough.wait(_LOOK_S):
                return
