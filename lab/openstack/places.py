# SPDX-License-Identifier: Apache-2.0
"""Where the cloud's files are, and its addresses."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from lab.laboratory import default_cache
from lab.network import CONTROL_ADDRESS

TOP = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"

#: Raised whenever what is kept from run to run is laid out in another way.
FORMAT = 2
#: What the hosts answer on for OpenStack's services; then the guests' first and last address.
HOST_ADDRESS = {"host1": "10.78.0.2", "host2": "10.78.0.3"}
GUESTS = ("10.78.128.1", "10.78.255.254")
ALL = "10.78.0.0/16"
PASSWORD = "lab"
PORTS = {"identity": 5000, "placement": 8778, "image": 9292, "network": 9696, "compute": 8774}
_PATHS = {"identity": "/v3", "compute": "/v2.1"}


def default_run() -> Path:
    """``LAB_RUN``, or a directory below /run: short, as sockets' paths hold 107 bytes."""
    return Path(os.environ.get("LAB_RUN", "/run/ne-os")).resolve()


def endpoint(service: str) -> str:
    """The URL in the catalogue of a service of that type."""
    return f"http://{CONTROL_ADDRESS}:{PORTS[service]}{_PATHS.get(service, '')}"


@dataclass(frozen=True)
class Places:
    """``run`` is gone after a stop; ``data`` is what a warm start starts from."""

    run: Path
    data: Path
    programs: Path

    @classmethod
    def default(cls, run: Path | None = None, cache: Path | None = None) -> Places:
        """As the environment says: LAB_RUN, LAB_CACHE, LAB_OPENSTACK_VENV."""
        kept = default_cache() if cache is None else Path(cache).resolve()
        venv = os.environ.get("LAB_OPENSTACK_VENV", str(TOP / ".venv-openstack"))
        where = default_run() if run is None else Path(run).resolve()
        return cls(where, kept / "openstack", Path(venv).absolute() / "bin")

    @property
    def configuration(self) -> Path:
        """Directory of all configuration files."""
        return self.run / "etc"

    @property
    def instances(self) -> Path:
        """Nova's directory of instances: a mount of the shared volume in both hosts."""
        return self.run / "instances"

    @property
    def stores(self) -> Path:
        """Directory of stored appliances; a far store's is one below it."""
        return self.run / "stores"

    @property
    def database_socket(self) -> Path:
        """MariaDB's."""
        return self.run / "mariadb.sock"

    def database(self, name: str) -> str:
        """SQLAlchemy's URL of a database."""
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={self.database_socket}"

    def log(self, service: str, where: str = "ctl") -> Path:
        """The file with all that a service writes."""
        return self.run / "log" / f"{where}-{service}.log"

    def program(self, name: str) -> str:
        """A program of the OpenStack environment."""
        return str(self.programs / name)

    def recipe(self) -> str:
        """What the kept data depends on, in short: data of another recipe is made anew."""
        parts = (FORMAT, REQUIREMENTS.read_text(), str(self.run))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
