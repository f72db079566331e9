# SPDX-License-Identifier: Apache-2.0
"""The systemd units run what this package installs, with files that it documents."""

import configparser
import pathlib
import shlex
import shutil
import subprocess

import pytest
from oslo_privsep import capabilities

from nova_enlightened import privsep

TOP = pathlib.Path(__file__).parents[3]
SYSTEMD = TOP / "etc" / "systemd"
AGENT = SYSTEMD / "nova-enlightened-agent.service"
REMEDIATOR = SYSTEMD / "nova-enlightened-remediator.service"
COMPUTE = SYSTEMD / "nova-compute.service.d" / "nova-enlightened.conf"
UNITS = (AGENT, REMEDIATOR, COMPUTE)
FILES = ["/etc/nova/nova.conf", "/etc/nova_enlightened/nova_enlightened.conf"]


def settings(unit: pathlib.Path, section: str) -> list[tuple[str, str]]:
    """(name, value) of each line of a section, in order: names repeat."""
    found, inside = [], False
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            inside = line == f"[{section}]"
        elif inside and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((name, value))
    return found


def command(unit: pathlib.Path) -> list[str]:
    """The words that systemd runs: an empty ExecStart drops those before it."""
    lines = [value for name, value in settings(unit, "Service") if name == "ExecStart"]
    if "" in lines:
        lines = lines[lines.index("") + 1 :]
    assert len(lines) == 1
    return shlex.split(lines[0])


def console_scripts() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(TOP / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, target in (line.split("=") for line in lines)}


def test_every_file_there_is_looked_at() -> None:
    assert {path for path in SYSTEMD.rglob("*") if path.is_file()} == set(UNITS)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.parent.name + "/" + unit.name)
def test_a_unit_runs_a_console_script_with_novas_file_first(unit: pathlib.Path) -> None:
    program, *arguments = command(unit)
    path = pathlib.PurePosixPath(program)
    assert path.is_absolute()
    assert path.name in console_scripts()
    # The later file counts where both have an option.
    assert arguments == ["--config-file", FILES[0], "--config-file", FILES[1]]


def test_a_unit_is_named_after_what_it_runs() -> None:
    for unit in (AGENT, REMEDIATOR):
        assert pathlib.PurePosixPath(command(unit)[0]).name == unit.stem


def test_the_drop_in_replaces_the_command_of_nova_compute() -> None:
    starts = [value for name, value in settings(COMPUTE, "Service") if name == "ExecStart"]
    assert starts[0] == "", "a second ExecStart is refused by systemd"
    assert pathlib.PurePosixPath(command(COMPUTE)[0]).name == "nova-enlightened-compute"


def test_relays_survive_their_agent() -> None:
    service = dict(settings(AGENT, "Service"))
    assert service["KillMode"] == "process"
    assert service["OOMPolicy"] == "continue"
    assert "RuntimeDirectory" not in service, "systemd would take its sockets from QEMU"


def capabilities_named(setting: str) -> set[int]:
    service = dict(settings(AGENT, "Service"))
    return {capabilities.CAPS_BYNAME[name] for name in service[setting].split()}


@pytest.mark.parametrize("setting", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_the_agent_is_started_with_what_its_contexts_hold_and_no_more(setting: str) -> None:
    held = {each for context in privsep.CONTEXTS for each in context.conf.capabilities}
    assert capabilities_named(setting) == held


@pytest.mark.parametrize("unit", [AGENT, REMEDIATOR], ids=lambda unit: unit.name)
def test_services_are_ordinary_users_that_cannot_become_more(unit: pathlib.Path) -> None:
    service = dict(settings(unit, "Service"))
    assert service["User"] == "nova"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["RestrictSUIDSGID"] == service["RestrictNamespaces"] == "yes"
    assert "AF_PACKET" not in service["RestrictAddressFamilies"]


def test_nothing_private_hides_qemu_from_the_agent() -> None:
    names = dict(settings(AGENT, "Service")).keys()
    # /proc of QEMU's processes, its sockets, /dev/userfaultfd.
    assert not names & {
        "ProtectProc",
        "ProcSubset",
        "PrivateDevices",
        "PrivateNetwork",
        "PrivateUsers",
    }


def test_the_remediator_ends_whole_and_keeps_its_journal() -> None:
    service = dict(settings(REMEDIATOR, "Service"))
    assert service.get("KillMode", "control-group") == "control-group"
    assert service["StateDirectory"] == "nova-enlightened"
    assert service["User"] != "root"
    # Nova's file, which it is started with, may say that logs go there.
    assert service["ReadWritePaths"] == "-/var/log/nova"


def test_services_come_back_after_a_failure_and_at_boot() -> None:
    for unit in (AGENT, REMEDIATOR):
        assert dict(settings(unit, "Service"))["Restart"] == "on-failure"
        assert dict(settings(unit, "Install"))["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", [AGENT, REMEDIATOR], ids=lambda unit: unit.name)
def test_systemd_takes_every_setting(unit: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / unit.name
    program = command(unit)[0]  # which is not installed here
    copy.write_text(unit.read_text().replace(f"ExecStart={program} ", "ExecStart=/bin/true "))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unit.name not in done.stderr, done.stderr
