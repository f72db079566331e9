# SPDX-License-Identifier: Apache-2.0
"""The cloud's services, as a table: what runs where, and with which words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.network import CONTROL_ADDRESS, DATA_BRIDGE
from lab.openstack.configuration import BUS_PORT, Driver
from lab.openstack.places import HOST_ADDRESS, Places

_HERE = Path(__file__).resolve().parent
_MAPPERS = (
    "import neutron.db.models.port_forwarding, sqlalchemy.orm; sqlalchemy.orm.configure_mappers()"
)


@dataclass(frozen=True)
class Service:
    """One process. ``where``: ctl or a host.

    Ready is it when ``socket`` exists, its log has the words ``says``, ``port`` of ctl is
    listened on, or its type in the catalogue, ``serves``, is answered; where it has none of these,
    at once. ``loaded``: Python that a WSGI service runs when it is loaded.
    """

    name: str
    where: str
    command: tuple[str, ...]
    serves: str = ""
    socket: Path | None = None
    says: str = ""
    port: int = 0
    loaded: str = "pass"
    environment: Mapping[str, str] = field(default_factory=dict)


def database(places: Places) -> Service:
    """MariaDB. Nothing here has to survive a machine's crash: it never waits for the disk."""
    return Service(
        "mariadb", "ctl",
        ("/usr/sbin/mariadbd", "--no-defaults", "--user=root", "--skip-networking",
         "--skip-grant-tables", f"--datadir={places.data / 'mysql'}",
         f"--socket={places.database_socket}", f"--pid-file={places.run / 'mariadb.pid'}",
         "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync",
         "--innodb-buffer-pool-size=192M", "--performance-schema=OFF", "--skip-log-bin",
         "--max-connections=500", "--character-set-server=utf8mb4", "--plugin-maturity=unknown"),
        socket=places.database_socket,
    )  # fmt: skip


def bus(places: Places) -> Service:
    """RabbitMQ. What is in its queues is of no use to the next run."""
    own = places.run / "ctl" / "rabbitmq"
    return Service(
        "rabbitmq", "ctl", ("/usr/lib/rabbitmq/bin/rabbitmq-server",), port=BUS_PORT,
        environment={
            "HOME": str(own),
            "RABBITMQ_NODENAME": "rabbit@localhost",
            "RABBITMQ_MNESIA_BASE": str(own / "mnesia"),
            "RABBITMQ_LOG_BASE": str(own / "log"),
            "RABBITMQ_CONFIG_FILE": str(places.configuration / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(own / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
            "RABBITMQ_PID_FILE": str(own / "pid"),
            # The scheduler of this Erlang keeps spinning when idle; two processors have others.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        },
    )  # fmt: skip


def storage(places: Places) -> Service:
    """glusterd, of which the brick is a child."""
    return Service(
        "glusterd", "ctl", ("/usr/sbin/glusterd", "--no-daemon", "--log-level=WARNING"),
        socket=places.run / "ctl/run/glusterd.socket",
    )  # fmt: skip


def _wsgi(places: Places, name: str, serves: str, module: str, loaded: str = "pass") -> Service:
    etc = str(places.configuration)
    return Service(
        name, "ctl",
        (places.program("gunicorn"), "-c", f"{etc}/{name}.gunicorn.py", f"{module}:application"),
        serves=serves, loaded=loaded,
        environment={
            **{f"OS_{each.upper()}_CONFIG_DIR": etc
               for each in ("keystone", "placement", "glance", "neutron", "nova")},
            "OS_NEUTRON_CONFIG_FILES": "neutron.conf",
        },
    )  # fmt: skip


def interfaces(places: Places) -> list[Service]:
    """Everything that answers HTTP."""
    return [
        _wsgi(places, "keystone", "identity", "keystone.wsgi.api"),
        _wsgi(places, "placement", "placement", "placement.wsgi.api"),
        _wsgi(places, "glance", "image", "glance.wsgi.api"),
        _wsgi(places, "neutron", "network", "neutron.wsgi.api", _MAPPERS),
        _wsgi(places, "nova-api", "compute", "nova.wsgi.osapi_compute"),
    ]


def workers(places: Places, driver: Driver) -> Iterator[Service]:
    """Everything that works for the bus, and what each host needs besides.

    The first is the conductor: a nova-compute that asks too early waits for ten seconds.
    """
    etc = places.configuration
    ours = driver is Driver.ENLIGHTENED
    nova, own = etc / "nova.conf", etc / "ctl-enlightened.conf"
    conductor = _worker(places, "nova-conductor", "ctl", [nova])
    yield replace(conductor, says="Starting conductor node")
    yield _worker(places, "nova-scheduler", "ctl", [nova, own])
    yield remediator(places)
    for host in HOST_ADDRESS:
        files = [etc / f"{host}.conf", etc / f"{host}-enlightened.conf"]
        yield Service("plugger", host, ("/bin/sh", str(_HERE / "plugins/plugger.sh"), DATA_BRIDGE))
        yield _worker(places, "nova-enlightened-agent", host, files)
        compute = "nova-enlightened-compute" if ours else "nova-compute"
        yield _worker(places, compute, host, files if ours else files[:1])


def remediator(places: Places) -> Service:
    """The service that relieves hosts."""
    etc = places.configuration
    files = [etc / "nova.conf", etc / "ctl-enlightened.conf"]
    service = _worker(places, "nova-enlightened-remediator", "ctl", files)
    return replace(service, says="Leading")


def _worker(places: Places, name: str, where: str, files: list[Path]) -> Service:
    words = [places.program(name)]
    for file in files:
        words += ["--config-file", str(file)]
    return Service(name, where, tuple(words))


def installed(services: Iterator[Service]) -> tuple[list[Service], list[str]]:
    """Those whose program is there, and the names of the others."""
    found, missing = [], []
    for service in services:
        if Path(service.command[0]).exists():
            found.append(service)
        else:
            missing.append(service.name)
    return found, missing


def schemas(places: Places) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By service: the commands that make its tables and its first rows, in order."""
    etc = places.configuration

    def command(name: str, *words: str, config: str = "") -> tuple[str, ...]:
        file = etc / (config or f"{name.partition('-')[0]}.conf")
        return (places.program(name), "--config-file", str(file), *words)

    def keystone(*words: str) -> tuple[str, ...]:
        return command("keystone-manage", *words)

    root = ("--keystone-user", "root", "--keystone-group", "root")
    identity = f"http://{CONTROL_ADDRESS}:5000/v3"
    bootstrap = ("bootstrap", "--bootstrap-password", "lab", "--bootstrap-region-id", "lab",
                 "--bootstrap-public-url", identity,
                 "--bootstrap-internal-url", identity)  # fmt: skip
    cell = ("cell_v2", "create_cell", "--name", "cell1")
    nothing = ("cell_v2", "map_cell0", "--database_connection", places.database("nova_cell0"))
    return {
        "neutron": (command("neutron-db-manage", "upgrade", "heads"),),
        "nova": (
            command("nova-manage", "api_db", "sync"),
            command("nova-manage", *nothing),
            command("nova-manage", "db", "sync"),
            command("nova-manage", *cell),
        ),
        "keystone": (
            keystone("fernet_setup", *root),
            keystone("credential_setup", *root),
            keystone("db_sync"),
            keystone(*bootstrap),
        ),
        "glance": (command("glance-manage", "db_sync", config="glance-api.conf"),),
        "placement": (command("placement-manage", "db", "sync"),),
    }


DATABASES = ("keystone", "placement", "glance", "neutron", "nova_api", "nova_cell0", "nova_cell1")
