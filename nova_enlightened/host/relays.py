# SPDX-License-Identifier: Apache-2.0
"""Starts relay processes and finds those that run.

The listening sockets are bound here and inherited, so that QEMU and the peer can connect
before the relay's interpreter has started: nothing waits for it.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.host.recovery import Carrier
from nova_enlightened.host.spare_relay import SpareRelay
from nova_enlightened.transfer import control
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles

LOOK_S = 0.02
"""Between two questions to a relay that is starting."""
ENTRY = (sys.executable, "-m", "nova_enlightened.cmd.relay", "run")


Seen = Callable[[str], pathlib.Path]
"""Where a path of the relay's host is seen from here; differs where that is another namespace."""


@dataclasses.dataclass(frozen=True)
class RunningRelay:
    """A relay process, known by its run directory."""

    spec: RelaySpec
    pid: int
    seen: Seen = pathlib.Path

    def state(self) -> dict[str, Any]:
        """What the relay last wrote of itself; empty before it first did."""
        try:
            state: dict[str, Any] = json.loads(self.seen(self.spec.state).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def know(self, snapshot: str) -> None:
        """Hand over newer guest knowledge, a file path. :raises RelayGone: it has ended."""
        control.ask(str(self.seen(self.spec.control)), "know", snapshot=snapshot)

    def take_leave(self) -> None:
        """Have a source's QEMU hear no more of its destination. :raises RelayGone: it has ended."""
        control.ask(str(self.seen(self.spec.control)), "take_leave")

    def stop(self) -> None:
        """End the relay, which breaks a migration that still needs it."""
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


def listen_link(host: str, port: int) -> socket.socket:
    """A listening TCP socket of the link; port 0 lets the kernel choose."""
    return socket.create_server((host, port), backlog=4)


def listen_in_range(conf: cfg.ConfigOpts) -> socket.socket:
    """A listening TCP socket of the link on a free port of this host's range.

    :raises RelayError: no port of the range is free, or the address is not this host's.
    """
    group = conf.enlightened
    refusal: OSError | None = None
    for port in range(group.link_port_min, group.link_port_max + 1):
        try:
            return listen_link(group.link_address, port)
        except OSError as error:
            refusal = error
            if error.errno != errno.EADDRINUSE:
                break
    raise exception.RelayError(
        f"no port from {group.link_port_min} to {group.link_port_max} to listen on at "
        f"{group.link_address}: {refusal}"
    )


def tls_files(options: Any, peer_name: str) -> TlsFiles | None:
    """This host's certificates for a link to a peer; None where ``link_tls`` is off.

    :param options: the group ``[enlightened]``.
    """
    if options.link_tls == "off":
        return None
    return TlsFiles(
        options.link_tls_ca, options.link_tls_certificate, options.link_tls_key, peer_name
    )


def for_this_host(spec: RelaySpec, conf: cfg.ConfigOpts) -> RelaySpec:
    """A specification that a peer asks for, with this host's own certificates.

    :raises ConfigError: one host wants TLS and the other does not.
    """
    group = conf.enlightened
    encrypted = group.link_tls == "required"
    if encrypted != (spec.tls is not None):
        raise exception.ConfigError(
            f"link_tls is {group.link_tls!r} on this host and not on the one that asks"
        )
    if spec.tls is None:
        return spec
    return dataclasses.replace(spec, tls=tls_files(group, spec.tls.peer_name))


def start(
    spec: RelaySpec,
    listener: socket.socket,
    prefix: Sequence[str] = (),
    seen: Seen = pathlib.Path,
    spare: SpareRelay | None = None,
) -> RunningRelay:
    """Start a relay that outlives this process.

    :param listener: the source's unix socket or the destination's TCP socket; closed here
        once the relay has inherited it.
    :param prefix: command put before the relay's own, to enter another namespace.
    :param spare: a process that has started already, used where it can be.
    :raises RelayError: the relay could not be started.
    """
    directory = seen(spec.run_directory)
    spec.save(directory)
    log = directory / "relay.log"
    command = [*prefix, *ENTRY, spec.path, "--listener", str(listener.fileno())]
    try:
        with listener, log.open("ab") as output:
            pid = spare.take(spec, listener, log) if spare is not None else None
            if pid is not None:
                return RunningRelay(spec, pid, seen)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
    except OSError as error:
        raise exception.RelayError(f"relay did not start: {error}") from error
    process.returncode = 0  # it outlives this object and is looked after by its pid
    return RunningRelay(spec, process.pid, seen)


def specification(parent: str, migration: str | None, role: str) -> RelaySpec | None:
    """Of one side's relay, from its run directory in `parent`; None where there is none."""
    if migration is None:
        return None
    try:
        text = pathlib.Path(parent, f"{migration}-{role}", "spec.json").read_text()
        return RelaySpec.from_json(text)
    except (OSError, exception.ConfigError):
        return None


def carrier(spec: RelaySpec) -> tuple[Carrier, dict[str, Any]]:
    """Whether a relay of this host runs, and what it says of itself.

    One that does not answer in time is not gone for that.
    """
    try:
        return Carrier.ALIVE, control.ask(spec.control, "status")
    except exception.RelayGone as error:
        slow = isinstance(error.__cause__, TimeoutError)
        return Carrier.UNKNOWN if slow else Carrier.GONE, {}
    except exception.RelayError:
        return Carrier.UNKNOWN, {}


def linked(relay: RunningRelay, patience: float) -> str | None:
    """Wait until a source's relay has reached its peer; why it has not, or None.

    :param patience: seconds.
    """
    deadline = time.monotonic() + patience
    trouble = "the relay does not answer"
    while time.monotonic() < deadline:
        link = carrier(relay.spec)[1].get("link")
        if link is not None:
            if link["ready"]:
                return None
            trouble = str(link["trouble"]) or "no connection yet"
        time.sleep(LOOK_S)
    return trouble


def end(spec: RelaySpec, patience: float, pid: int = 0) -> None:
    """End a relay of this host, and wait until it is gone: QEMU's socket is closed then.

    One that has not come so far that it could be asked ends as soon as it would have.

    :param pid: where it is known: such a one is gone, too, then.
    :raises RelayError: it still runs after `patience` seconds, or it does not answer.
    """
    with contextlib.suppress(FileNotFoundError):  # its directory was removed long ago
        pathlib.Path(spec.unwanted).touch()
    try:
        pid = pid or int(control.ask(spec.control, "status")["pid"])
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except exception.RelayGone as error:
        if isinstance(error.__cause__, TimeoutError):
            raise exception.RelayError(str(error)) from error
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], patience)[0]:
                return
        raise exception.RelayError(f"relay {pid} does not end")
    finally:
        os.close(descriptor)


def running(parent: str) -> Iterator[RunningRelay]:
    """Relays whose run directories lie in `parent` and that still answer."""
    for path in sorted(pathlib.Path(parent).glob("*/spec.json")):
        try:
            spec = RelaySpec.from_json(path.read_text())
            status = control.ask(spec.control, "status")
        except (OSError, exception.ConfigError, exception.RelayGone):
            continue
        yield RunningRelay(spec, int(status["pid"]))
