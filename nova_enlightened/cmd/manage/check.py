# SPDX-License-Identifier: Apache-2.0
"""``check``: is this host set up as it has to be? Looks; what is judged is in ``host``."""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, Final

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import Context
from nova_enlightened.conf import agent as agent_options
from nova_enlightened.host import capability, certificates, installation
from nova_enlightened.host.installation import Finding, Grade, fail, ok, warn
from nova_enlightened.transfer.spec import TlsFiles

PACKAGES: Final = ("nova-enlightened", "nova", "oslo.messaging", "libvirt-python")
OPEN_S: Final = 3.0


def check(arguments: argparse.Namespace, context: Context) -> int:
    """0 where everything is in order or only warned of, 1 where something is not."""
    found = list(look(context, arguments.guest))
    if arguments.json:
        output.document([{**dataclasses.asdict(one), "grade": one.grade.name} for one in found])
    else:
        output.findings(found)
    return 1 if installation.worst(found) is Grade.FAIL else 0


def look(context: Context, guest: str) -> Iterator[Finding]:
    """Everything, in the order in which it is best set right.

    :param guest: name or UUID of a domain whose agent is asked, empty for none.
    """
    conf = context.conf
    with _libvirt(conf) as connection:
        user = capability.qemu_user(connection.getCapabilities()) if connection else None
        if connection is None:
            yield warn(
                "libvirt",
                f"cannot be reached at {conf[agent_options.GROUP].libvirt_uri}",
                "start it, or see [enlightened_agent] libvirt_uri; only compute hosts have it",
            )
        yield from installation.versions(_versions(connection))
        yield installation.userfaultfd(user, _read)
        yield from installation.run_directory(conf.enlightened.run_directory, user)
        yield installation.apparmor(conf.enlightened.run_directory, _read)
        yield from _link(conf)
        yield from installation.nova(
            importlib.util.find_spec,
            conf.libvirt.live_migration_permit_post_copy if _read_nova(conf) else None,
            conf.compute_driver,
        )
        answer, found = _agent(context)
        yield from found
        if guest:
            yield _guest(conf, connection, guest, answer.get("armed") or {})


def _read(path: str) -> str | None:
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return None


def _read_nova(conf: Any) -> bool:
    """Whether Nova's configuration is among the files read: only it names a driver."""
    return bool(conf.compute_driver)


@contextlib.contextmanager
def _libvirt(conf: Any) -> Iterator[Any]:
    """An open connection, or None where there is none to be had."""
    try:
        import libvirt
    except ImportError:
        yield None
        return
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection, uri = None, conf[agent_options.GROUP].libvirt_uri
    for opener in (libvirt.open, libvirt.openReadOnly):
        try:
            connection = opener(uri)
            break
        except libvirt.libvirtError:
            continue
    if connection is None:
        yield None
        return
    with contextlib.closing(connection):
        yield connection


def _versions(connection: Any) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    if connection is not None:
        found["QEMU"] = _dotted(connection.getVersion())
        found["libvirt"] = _dotted(connection.getLibVersion())
    for name in PACKAGES:
        found[name] = _package(name)
    return found


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _dotted(number: int) -> str:
    """Libvirt's numbers: 7002011 is 7.2.11."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _own_name(conf: Any) -> str:
    """Of this host's compute service, as its agent has it."""
    return conf[agent_options.GROUP].host or conf.host or socket.gethostname()


def _link(conf: Any) -> Iterator[Finding]:
    ours = conf.enlightened
    if ours.link_tls == "off":
        yield warn(
            "link_tls",
            "off: memory of guests crosses the network as it is",
            "[enlightened] link_tls = required, unless that network is encrypted or trusted",
        )
    else:
        name = conf[agent_options.GROUP].link_name or _own_name(conf)
        files = TlsFiles(ours.link_tls_ca, ours.link_tls_certificate, ours.link_tls_key, name)
        yield from certificates.certificates(files, datetime.datetime.now(datetime.UTC))
    yield installation.ports(ours.link_address, ours.link_port_min, ours.link_port_max)


def _agent(context: Context) -> tuple[Mapping[str, Any], list[Finding]]:
    """What this host's agent answers, and what to make of it."""
    host = _own_name(context.conf)
    try:
        answer = context.hosts.describe(host)
    except exception.EnlightenedError as error:
        found = fail(
            "agent",
            f"that of {host}: {error}",
            "start nova-enlightened-agent, with the transport_url of Nova; [enlightened_agent] "
            "host has to be the name of the compute service",
        )
        return {}, [found]
    return answer, list(installation.agent(answer, _package("nova-enlightened")))


def _guest(conf: Any, connection: Any, name: str, armed: Mapping[str, str]) -> Finding:
    """Whether a guest can be asked, and by what.

    :param armed: guests that the agent converses with: their port is taken.
    """
    what = f"guest {name}"
    if connection is None:
        return fail(what, "libvirt cannot be reached", "see [enlightened_agent] libvirt_uri")
    # These need libvirt.
    import libvirt

    from nova_enlightened.host import departure, hint_sources

    try:
        try:
            domain = connection.lookupByUUIDString(name)
        except libvirt.libvirtError:
            domain = connection.lookupByName(name)
        if domain.UUIDString() in armed:
            return ok(what, f"with this host's agent: {armed[domain.UUIDString()]}")
        target = departure.hint_target(
            domain.name(),
            domain.XMLDesc(),
            domain.maxMemory(),
            hint_sources.libvirt_agent_command(domain),
        )
    except libvirt.libvirtError as error:
        return fail(what, str(error), "name a domain as virsh list does")
    opened = hint_sources.open_first(
        hint_sources.load(conf.enlightened.hint_sources), target, OPEN_S, time.monotonic
    )
    if opened.source is None:
        return warn(
            what,
            "; ".join(opened.declined) or opened.how,
            "start nova-enlightened-guest in it; a guest that runs since before the driver was "
            "installed gets its port at the next hard reboot",
        )
    opened.source.close()
    return ok(what, opened.how)
