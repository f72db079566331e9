# SPDX-License-Identifier: Apache-2.0
"""Privileges are held by processes of their own, and no more of them than their name says.

A service is started here as systemd starts the agent: an ordinary user with ambient capabilities.
"""

import grp
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_privsep import capabilities

from nova_enlightened import privsep

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives a process capabilities"
)
TOP = pathlib.Path(__file__).parents[2]
USER = 65534
GROUP = grp.getgrnam("daemon").gr_gid
HELD = "chown,fowner,dac_override,sys_nice,sys_ptrace,dac_read_search"
FORMERLY = "chown,fowner,dac_override,sys_nice"
"""By a unit of before QEMU's memory could be read."""
PREAMBLE = """
import json, os, pathlib, subprocess, sys
from nova_enlightened import niceness, privsep

def status(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: fields[key].strip() for key in ("CapEff", "CapPrm", "CapAmb", "CapInh", "Uid")}

def children():
    return [int(pid) for pid in pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
            .read_text().split()]

def fails(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return type(error).__name__
    return None

privsep.start()
"""


def service(body: str, *arguments: str, held: str = HELD) -> Any:
    """What a service prints that is an ordinary user with the agent's ambient capabilities."""
    each = ",".join(f"+{name}" for name in held.split(","))
    program = PREAMBLE + textwrap.dedent(body) + "\nprivsep.stop()\n"
    done = subprocess.run(
        [
            "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
            f"--inh-caps={each}", f"--ambient-caps={each}", f"--bounding-set=-all,{each}",
            "--no-new-privs", sys.executable, "-c", program, *arguments,
        ],
        cwd=TOP, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def closed(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory in which only root may make anything, and everybody may look."""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    directory = tmp_path / "run"
    directory.mkdir(mode=0o755)
    return directory


def mask(*held: int) -> str:
    return f"{sum(1 << number for number in held):016x}"


def test_the_service_itself_keeps_nothing() -> None:
    told = service("print(json.dumps(status(os.getpid())))")
    assert {told[key] for key in ("CapEff", "CapPrm", "CapAmb", "CapInh")} == {mask()}
    assert set(told["Uid"].split()) == {str(USER)}


def test_each_context_holds_what_it_is_for_and_no_more() -> None:
    told = service("print(json.dumps(sorted(status(pid)['CapEff'] for pid in children())))")
    directories = (
        capabilities.CAP_CHOWN,
        capabilities.CAP_FOWNER,
        capabilities.CAP_DAC_OVERRIDE,
    )
    memory = capabilities.CAP_SYS_PTRACE, capabilities.CAP_DAC_READ_SEARCH
    assert told == sorted([mask(*directories), mask(capabilities.CAP_SYS_NICE), mask(*memory)])


def test_a_service_of_an_older_unit_starts_and_does_without_what_it_was_not_given() -> None:
    told = service(
        """
        contexts = len(children())
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        print(json.dumps([
            contexts,
            fails(privsep.read_memory, 1, "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69", 4096, 1),
            fails(privsep.prefer, child.pid, niceness.WAITED_FOR),
        ]))
        child.kill(); child.wait()
        """,
        held=FORMERLY,
    )
    assert told == [2, "PermissionError", None]


def test_contexts_end_with_their_service() -> None:
    told = service(
        """
        pids = children()
        privsep.stop()
        for pid in pids:
            os.waitpid(pid, 0)
        print(json.dumps({"ended": len(pids)}))
        """
    )
    assert told["ended"] == len(privsep.CONTEXTS)


def test_a_directory_that_two_share_is_made_where_only_root_may(closed: pathlib.Path) -> None:
    told = service(
        """
        path, group = sys.argv[1], int(sys.argv[2])
        alone = fails(os.mkdir, path)
        privsep.make_directory(path, os.getuid(), group)
        print(json.dumps({"alone": alone}))
        """,
        str(closed / "migrations"),
        str(GROUP),
    )
    assert told["alone"] == "PermissionError"
    made = (closed / "migrations").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (USER, GROUP, 0o1771)


def test_a_link_in_the_place_of_a_directory_is_not_followed(closed: pathlib.Path) -> None:
    victim = closed / "victim"
    victim.mkdir(mode=0o755)
    (closed / "migrations").symlink_to(victim)
    told = service(
        "print(json.dumps(fails(privsep.make_directory, sys.argv[1], os.getuid(), 1)))",
        str(closed / "migrations"),
    )
    assert told in ("NotADirectoryError", "OSError")
    assert victim.stat().st_uid == 0


def test_a_directory_of_a_third_user_is_not_taken(closed: pathlib.Path) -> None:
    theirs = closed / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 1, 1)
    told = service(
        "print(json.dumps(fails(privsep.make_directory, sys.argv[1], os.getuid(), 1)))", str(theirs)
    )
    assert told == "PermissionError"
    assert theirs.stat().st_uid == 1


def test_a_path_with_dots_is_refused(closed: pathlib.Path) -> None:
    told = service(
        "print(json.dumps(fails(privsep.make_directory, sys.argv[1], os.getuid(), 1)))",
        f"{closed}/../elsewhere",
    )
    assert told == "PermissionError"
    assert not (closed.parent / "elsewhere").exists()


def test_a_child_is_preferred_and_goes_back_to_its_fair_share_by_itself() -> None:
    told = service(
        """
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        alone = fails(os.setpriority, os.PRIO_PROCESS, child.pid, -10)
        privsep.prefer(child.pid, niceness.WAITED_FOR)
        preferred = os.getpriority(os.PRIO_PROCESS, child.pid)
        os.setpriority(os.PRIO_PROCESS, child.pid, 0)
        fair = os.getpriority(os.PRIO_PROCESS, child.pid)
        child.kill(); child.wait()
        print(json.dumps([alone, preferred, fair]))
        """
    )
    assert told == ["PermissionError", -10, 0]


def test_two_processes_are_preferred_in_one_breath() -> None:
    """The kernel refuses a second autogroup's within a tenth of a second."""
    told = service(
        """
        both = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
        refused = [fails(privsep.prefer, child.pid, niceness.WAITED_FOR) for child in both]
        groups = [pathlib.Path(f"/proc/{child.pid}/autogroup") for child in both]
        told = [group.read_text().split()[-1] for group in groups if group.exists()]
        for child in both:
            child.kill(); child.wait()
        print(json.dumps([refused, told]))
        """
    )
    assert told[0] == [None, None]
    assert set(told[1]) <= {"-10"}


def test_another_users_process_is_not_preferred() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 1)
    told = service("print(json.dumps(fails(privsep.prefer, 1, niceness.WAITED_FOR)))")
    assert told == "PermissionError"
    assert os.getpriority(os.PRIO_PROCESS, 1) == before


def test_the_memory_of_a_vms_qemu_is_read_though_it_is_another_users() -> None:
    uuid = "6a8c3ba0-3a1c-4b0e-9a3e-1f2d3c4b5a69"
    play = (
        "import ctypes, sys; said = ctypes.create_string_buffer(b'what the guest knows'); "
        "print(ctypes.addressof(said), flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", play, "-uuid", uuid]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        where = qemu.stdout.readline().decode().strip()
        told = service(
            """
            pid, uuid, where = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
            alone = fails(open, f"/proc/{pid}/mem", "rb")
            another = fails(privsep.read_memory, 1, uuid, where, 20)
            read = privsep.read_memory(pid, uuid, where, 20).decode()
            print(json.dumps([alone, another, read]))
            """,
            str(qemu.pid),
            uuid,
            where,
        )
    assert told == ["PermissionError", "PermissionError", "what the guest knows"]


@pytest.mark.parametrize("value", [-11, -20, 1])
def test_a_niceness_beyond_a_relays_is_refused(value: int) -> None:
    told = service(
        "print(json.dumps(fails(privsep.prefer, os.getpid(), int(sys.argv[1]))))", str(value)
    )
    assert told == "PermissionError"


def test_a_context_runs_no_function_that_is_not_its_own() -> None:
    told = service(
        """
        refused = []
        for name in ("os.system", "nova_enlightened.privsep.prefer", "os.unlink"):
            try:
                privsep.directories.channel.remote_call(name, ("/nowhere", 0), {}, 10)
            except NameError:
                refused.append(name)
        print(json.dumps(refused))
        """
    )
    assert told == ["os.system", "nova_enlightened.privsep.prefer", "os.unlink"]
