# SPDX-License-Identifier: Apache-2.0
"""Every configuration file of the cloud, as tables: file, section, option, value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lab.far import STORE_ADDRESS
from lab.network import CONTROL_ADDRESS, MIGRATION_ADDRESS
from lab.openstack.places import HOST_ADDRESS, PASSWORD, PORTS, Places, endpoint

Sections = Mapping[str, Mapping[str, object]]

REGION = "lab"
PHYSICAL_NETWORK = "data"
_SCHEDULING = "nova_enlightened.scheduler"
_FILTER, _WEIGHER = "filters.ContentionFilter", "weights.ContentionWeigher"
BUS_PORT = 5672
BUS = f"rabbit://guest:guest@{CONTROL_ADDRESS}:{BUS_PORT}/"
RABBITMQ = f"""\
listeners.tcp.1 = {CONTROL_ADDRESS}:{BUS_PORT}
loopback_users = none
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
"""


class Driver(StrEnum):
    """Which driver nova-compute runs. All else is the same, this project's services too."""

    STOCK = "stock"
    ENLIGHTENED = "enlightened"


@dataclass(frozen=True)
class Settings:
    """What differs from one cloud to the next.

    ``mode``: the remediator's, audit or auto. ``link_mbit``: the migration link, None where it is
    not shaped. ``extra``: options of this project's services, by section, over the laboratory's.
    """

    driver: Driver = Driver.STOCK
    mode: str = "audit"
    link_mbit: float | None = None
    extra: Sections = field(default_factory=dict)


_COMPUTE_DRIVERS = {
    Driver.STOCK: "libvirt.LibvirtDriver",
    Driver.ENLIGHTENED: "enlightened.EnlightenedLibvirtDriver",
}


def account(user: str = "service") -> dict[str, object]:
    """Options of keystoneauth: of the account of all services, or of ``admin``, the operator."""
    return {
        "auth_type": "password",
        "auth_url": endpoint("identity"),
        "username": user,
        "password": PASSWORD,
        "project_name": user,
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region_name": REGION,
    }


def _verifies_tokens() -> dict[str, object]:
    return {
        **account(),
        "www_authenticate_uri": endpoint("identity"),
        "service_token_roles": "service",
    }


def _locks(places: Places, where: str) -> dict[str, object]:
    return {"lock_path": places.run / where / "locks"}


def keystone(places: Places) -> Sections:
    """keystone.conf."""
    keys = places.data / "keystone"
    return {
        "database": {"connection": places.database("keystone")},
        "fernet_tokens": {"key_repository": keys / "fernet"},
        "credential": {"key_repository": keys / "credential"},
        # The fewest rounds bcrypt has: each service logs in anew at every start.
        "identity": {"password_hash_rounds": 4},
        "token": {"expiration": 86400},
    }


def placement(places: Places) -> Sections:
    """placement.conf."""
    return {
        "placement_database": {"connection": places.database("placement")},
        "api": {"auth_strategy": "keystone"},
        "keystone_authtoken": _verifies_tokens(),
    }


def glance(places: Places) -> Sections:
    """glance-api.conf."""
    return {
        "DEFAULT": {"enabled_backends": "kept:file", "enable_v2_api": True},
        "database": {"connection": places.database("glance")},
        "glance_store": {"default_backend": "kept"},
        "kept": {"filesystem_store_datadir": places.data / "images"},
        "os_glance_staging_store": {"filesystem_store_datadir": places.run / "ctl" / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": places.run / "ctl" / "tasks"},
        "paste_deploy": {
            "flavor": "keystone",
            "config_file": places.programs.parent / "etc/glance/glance-api-paste.ini",
        },
        "keystone_authtoken": _verifies_tokens(),
        "oslo_concurrency": _locks(places, "ctl"),
    }


def neutron(places: Places) -> Sections:
    """neutron.conf. No agents: what they would do for a port, ``plugger.sh`` does in each host."""
    return {
        "DEFAULT": {
            "core_plugin": "ml2",
            "service_plugins": "",
            "auth_strategy": "keystone",
            "transport_url": BUS,
            "api_paste_config": places.programs.parent / "etc/neutron/api-paste.ini",
            "notify_nova_on_port_status_changes": False,
            "notify_nova_on_port_data_changes": False,
            "state_path": places.run / "ctl" / "neutron",
            "base_mac": "fa:16:3e:00:00:00",
        },
        "database": {"connection": places.database("neutron")},
        "keystone_authtoken": _verifies_tokens(),
        "nova": account(),
        "placement": account(),
        "oslo_concurrency": _locks(places, "ctl"),
        "ml2": {
            "type_drivers": "flat",
            "tenant_network_types": "",
            "mechanism_drivers": "lab_tap",
            "extension_drivers": "",
        },
        "ml2_type_flat": {"flat_networks": PHYSICAL_NETWORK},
        "securitygroup": {"enable_security_group": False},
    }


def _nova(places: Places, where: str) -> dict[str, dict[str, object]]:
    return {
        "DEFAULT": {
            "transport_url": BUS,
            "state_path": places.data / "nova" / where,
            "instances_path": places.instances,
            # To the other host Nova resizes over ssh, which nobody here listens for.
            "allow_resize_to_same_host": True,
        },
        "keystone_authtoken": _verifies_tokens(),
        "service_user": {**account(), "send_service_user_token": True},
        "placement": account(),
        "neutron": account(),
        "glance": account(),
        "cinder": {**account(), "catalog_info": "volumev3::publicURL"},
        "oslo_concurrency": _locks(places, where),
        "oslo_messaging_notifications": {"driver": "noop"},
        "vnc": {"enabled": False},
        "spice": {"enabled": False},
    }


def nova(places: Places) -> Sections:
    """nova.conf of the API, the conductor and the scheduler."""
    common = _nova(places, "ctl")
    common["DEFAULT"]["my_ip"] = CONTROL_ADDRESS
    return {
        **common,
        "api_database": {"connection": places.database("nova_api")},
        "database": {"connection": places.database("nova_cell1")},
        "wsgi": {"api_paste_config": places.programs.parent / "etc/nova/api-paste.ini"},
        "conductor": {"workers": 1},
        "scheduler": {"workers": 1, "discover_hosts_in_cells_interval": 5},
        "filter_scheduler": {
            "available_filters": ("nova.scheduler.filters.all_filters", f"{_SCHEDULING}.{_FILTER}"),
            "enabled_filters": f"ComputeFilter,ImagePropertiesFilter,{_FILTER.rpartition('.')[2]}",
            "weight_classes": f"nova.scheduler.weights.all_weighers,{_SCHEDULING}.{_WEIGHER}",
        },
    }


def compute(places: Places, host: str, driver: Driver) -> Sections:
    """nova.conf of a compute host."""
    helper = f"{places.program('privsep-helper')} --config-file {places.configuration}/{host}.conf"
    common = _nova(places, host)
    common["DEFAULT"] |= {
        "my_ip": HOST_ADDRESS[host],
        "compute_driver": _COMPUTE_DRIVERS[driver],
        "cpu_allocation_ratio": 16.0,
        "reserved_host_memory_mb": 1024,
        # No agent reports a port as ready: it is, once its tap is there.
        "vif_plugging_is_fatal": False,
        "vif_plugging_timeout": 0,
        # A server is what it was again when the laboratory is up again.
        "running_deleted_instance_action": "reap",
        "force_config_drive": False,
    }
    return {
        **common,
        "libvirt": {
            "virt_type": "qemu",
            "cpu_mode": "none",
            "connection_uri": "qemu:///system",
            "live_migration_permit_post_copy": True,
            "live_migration_scheme": "tcp",
            "live_migration_inbound_addr": MIGRATION_ADDRESS[host],
            "num_pcie_ports": 0,
            "rng_dev_path": "/dev/urandom",
        },
        "nova_sys_admin": {"helper_command": helper},
        "vif_plug_ovs_privileged": {"helper_command": helper},
        "vif_plug_linux_bridge_privileged": {"helper_command": helper},
        "privsep_osbrick": {"helper_command": helper},
        "workarounds": {"disable_deep_image_inspection": True},
    }


def enlightened(places: Places, host: str, settings: Settings) -> Sections:
    """nova-enlightened.conf of a compute host, read after Nova's own file."""
    return {
        "enlightened": {
            "link_address": MIGRATION_ADDRESS[host],
            "link_tls": "required",
            "link_tls_ca": places.run / "tls/ca.pem",
            "link_tls_certificate": places.run / f"tls/{host}.pem",
            "link_tls_key": places.run / f"tls/{host}.key",
            # An emulated guest pays ten times what the same samples cost on a real processor.
            "arm_cpu_limit": 0.2,
        },
        "enlightened_agent": {
            "link_bandwidth": round(settings.link_mbit or 0),
            # The whole machine's processors and stalls say nothing of this host.
            "collectors": "libvirt,lab-guests,memory,link",
        },
        "enlightened_streaming": {
            "stores": f"file://{places.stores}/,http://{STORE_ADDRESS}/",
            "cache_directory": places.run / host / "chunks",
            "trace_directory": places.run / host / "traces",
        },
    }


def remediation(places: Places, settings: Settings) -> Sections:
    """nova-enlightened.conf of ctl, read after Nova's own file."""
    return {
        "enlightened_remediation": {
            **account(),
            "mode": settings.mode,
            "state_path": places.run / "ctl/remediator",
        }
    }


def merged(sections: Sections, extra: Sections) -> Sections:
    """``sections`` with what ``extra`` sets instead or besides."""
    names = dict.fromkeys((*sections, *extra))
    return {name: {**sections.get(name, {}), **extra.get(name, {})} for name in names}


def text(sections: Sections) -> str:
    """A configuration file. A tuple is an option given several times; ``$`` and ``%`` are not
    quoted, and do not occur here.
    """
    lines: list[str] = []
    for section, options in sections.items():
        lines.append(f"[{section}]")
        for name, value in options.items():
            values = value if isinstance(value, tuple) else (value,)
            lines += [f"{name} = {each}" for each in values]
        lines.append("")
    return "\n".join(lines)


def files(places: Places, settings: Settings) -> dict[str, Sections]:
    """All of them by file name."""
    named = {
        "keystone.conf": keystone(places),
        "placement.conf": placement(places),
        "glance-api.conf": glance(places),
        "neutron.conf": neutron(places),
        "nova.conf": nova(places),
        "ctl-enlightened.conf": merged(remediation(places, settings), settings.extra),
    }
    for host in HOST_ADDRESS:
        named[f"{host}.conf"] = compute(places, host, settings.driver)
        own = enlightened(places, host, settings)
        named[f"{host}-enlightened.conf"] = merged(own, settings.extra)
    return named


def gunicorn(service: str, loaded: str = "pass") -> str:
    """Configure gunicorn: one process, and none of its own words for the service.

    ``loaded`` is a Python statement for when the service is loaded.
    """
    return f"""\
import sys

sys.argv = [{service!r}]
bind = "{CONTROL_ADDRESS}:{PORTS[service]}"
workers = 1
worker_class = "gthread"
threads = 8
timeout = 0
graceful_timeout = 2
# A client that asks again after a while must not meet a connection that is just being closed.
keepalive = 300
control_socket_disable = True


def post_worker_init(worker):
    {loaded}
"""
