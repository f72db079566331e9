# SPDX-License-Identifier: Apache-2.0
"""The DevStack plugin, run by bash with DevStack's own functions replaced."""

import configparser
import pathlib
import subprocess

import pytest

from nova_enlightened import conf

DEVSTACK = pathlib.Path(__file__).parents[3] / "devstack"

# What DevStack brings. 'iniset' appends; the last value of a key is what counts.
STUBS = """
function is_service_enabled { [[ " $ENABLED_SERVICES " == *" $1 "* ]]; }
function setup_develop { echo "setup_develop $1"; }
function iniset { printf '[%s]\\n%s = %s\\n' "$2" "$3" "$4" >> "$1"; }
function sudo { "$@"; }
function install { mkdir -p "${!#}"; }
"""


@pytest.fixture
def stack(tmp_path: pathlib.Path) -> dict[str, str]:
    """DevStack's variables, with every directory below `tmp_path`."""
    return {
        "PATH": "/usr/bin:/bin",
        "DEST": str(tmp_path / "stack"),
        "ENABLED_SERVICES": "n-cpu n-api",
        "HOST_IP": "192.0.2.10",
        "NOVA_CONF": str(tmp_path / "nova.conf"),
        "NOVA_ENLIGHTENED_CONF_DIR": str(tmp_path / "etc"),
        "NOVA_ENLIGHTENED_RUN_DIR": str(tmp_path / "run"),
        "STACK_USER": "stack",
    }


def plugin(stack: dict[str, str], *phase: str) -> str:
    """What the plugin prints when DevStack sources it in a phase."""
    script = f'set -eu\n{STUBS}\nsource "{DEVSTACK}/settings"\nsource "{DEVSTACK}/plugin.sh"\n'
    done = subprocess.run(
        ["bash", "-c", script, "stack.sh", *phase],
        env=stack,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(path: str | pathlib.Path) -> configparser.ConfigParser:
    """An INI file, read with repeated sections merged."""
    parser = configparser.ConfigParser(strict=False)
    parser.read(path)
    return parser


def test_install_makes_an_editable_install(stack: dict[str, str]) -> None:
    assert plugin(stack, "stack", "install") == f"setup_develop {stack['DEST']}/nova-enlightened\n"


def test_configuration_names_only_options_that_exist(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    file = pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "nova-enlightened.conf")
    known = {option.dest for _, options in conf.list_opts() for option in options}
    ours = written(file)[conf.GROUP]
    assert set(ours) <= known
    assert ours["link_address"] == stack["HOST_IP"]


def test_configuration_lets_nova_use_post_copy(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    nova = written(stack["NOVA_CONF"])
    assert nova["libvirt"]["live_migration_permit_post_copy"] == "True"


def test_a_value_from_local_conf_wins(stack: dict[str, str]) -> None:
    plugin(stack | {"NOVA_ENLIGHTENED_LINK_TLS": "required"}, "stack", "post-config")
    file = pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "nova-enlightened.conf")
    assert written(file)[conf.GROUP]["link_tls"] == "required"


def test_clean_removes_what_was_written(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    plugin(stack, "clean")
    assert not pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"]).exists()
    assert not pathlib.Path(stack["NOVA_ENLIGHTENED_RUN_DIR"]).exists()


def test_a_host_without_compute_is_left_alone(stack: dict[str, str]) -> None:
    assert plugin(stack | {"ENABLED_SERVICES": "n-api"}, "stack", "install") == ""


def test_other_phases_do_nothing(stack: dict[str, str]) -> None:
    for phase in (("stack", "pre-install"), ("stack", "extra"), ("unstack",)):
        assert plugin(stack, *phase) == ""
