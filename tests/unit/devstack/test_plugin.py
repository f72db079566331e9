# SPDX-License-Identifier: Apache-2.0
"""The DevStack plugin, run by bash with DevStack's own functions replaced."""

import getpass
import pathlib
import stat
import subprocess
import sys

import pytest
from cryptography import x509
from oslo_config import cfg

from nova_enlightened import conf
from nova_enlightened.conf import remediation

TOP = pathlib.Path(__file__).parents[3]
DEVSTACK = TOP / "devstack"
STUBS = pathlib.Path(__file__).with_name("stubs.sh")
FILTER = "nova_enlightened.scheduler.filters.ContentionFilter"
WEIGHER = "nova_enlightened.scheduler.weights.ContentionWeigher"


@pytest.fixture
def stack(tmp_path: pathlib.Path) -> dict[str, str]:
    """DevStack's variables of a stack on one machine, with every directory below `tmp_path`."""
    local = tmp_path / "apparmor.d" / "local"
    local.mkdir(parents=True)
    return {
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "CELLSV2_SETUP": "singleconductor",
        "DATA_DIR": str(tmp_path / "data"),
        "DEST": str(tmp_path / "stack"),
        "DISABLED_SERVICES": "",
        "ENABLED_SERVICES": "rabbit,n-cpu,n-api,n-sch",
        "ENABLE_DEBUG_LOG_LEVEL": "True",
        "HOST_IP": "192.0.2.10",
        "NOVA_BIN_DIR": "/opt/stack/data/venv/bin",
        "NOVA_CONF": str(tmp_path / "nova.conf"),
        "NOVA_CPU_CELL": "1",
        "NOVA_CPU_CONF": "/etc/nova/nova-cpu.conf",
        "NOVA_ENLIGHTENED_APPARMOR": str(local / "libvirt-qemu"),
        "NOVA_ENLIGHTENED_CONF_DIR": str(tmp_path / "etc"),
        "NOVA_ENLIGHTENED_DIR": str(TOP),
        "NOVA_ENLIGHTENED_RUN_DIR": str(tmp_path / "run"),
        "NOVA_ENLIGHTENED_SYSCTL": str(tmp_path / "sysctl.conf"),
        "NOVA_FILTERS": "ComputeFilter,ImagePropertiesFilter",
        "NOVA_NUM_CELLS": "2",
        "PYTHON": sys.executable,
        "REGION_NAME": "RegionOne",
        "SSL_BUNDLE_FILE": "/opt/stack/data/ca-bundle.pem",
        "STACK_USER": getpass.getuser(),
        "SYSTEMD_DIR": str(tmp_path / "systemd"),
        "VIRT_DRIVER": "libvirt",
    }


def run(stack: dict[str, str], *phase: str) -> subprocess.CompletedProcess[str]:
    """Source the plugin as DevStack does, in a phase."""
    sourced = (STUBS, DEVSTACK / "settings", DEVSTACK / "plugin.sh")
    script = "set -eu\n" + "".join(f'source "{path}"\n' for path in sourced)
    return subprocess.run(
        ["bash", "-c", script, "stack.sh", *phase],
        env=stack,
        capture_output=True,
        text=True,
        check=False,
    )


def plugin(stack: dict[str, str], *phase: str) -> str:
    """What the plugin prints in a phase that has to succeed."""
    done = run(stack, *phase)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ours(stack: dict[str, str]) -> cfg.ConfigOpts:
    """The file of our services as they read it, each value checked."""
    read = cfg.ConfigOpts()
    conf.register_opts(read)
    remediation.register_auth_opts(read)
    read.register_opts([cfg.StrOpt("transport_url"), cfg.BoolOpt("debug")])
    file = str(pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "nova_enlightened.conf"))
    read(["--config-file", file], project="test", default_config_files=[])
    for group, options in conf.list_opts():
        for option in options:
            read[group.name][option.dest]
    conf.check(read)
    return read


def nova(stack: dict[str, str]) -> cfg.ConfigOpts:
    """What Nova reads of its own file."""
    read = cfg.ConfigOpts()
    conf.register_opts(read)
    read.register_opt(cfg.StrOpt("compute_driver"))
    read.register_opt(cfg.BoolOpt("live_migration_permit_post_copy"), group="libvirt")
    read.register_opts(
        [
            cfg.MultiStrOpt("available_filters", default=[]),
            cfg.ListOpt("enabled_filters", default=[]),
            cfg.ListOpt("weight_classes", default=[]),
        ],
        group="filter_scheduler",
    )
    read(["--config-file", stack["NOVA_CONF"]], project="test", default_config_files=[])
    return read


def files(directory: pathlib.Path) -> dict[str, bytes]:
    """Every file below `directory`, by path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def drop_in(stack: dict[str, str]) -> pathlib.Path:
    return pathlib.Path(stack["SYSTEMD_DIR"], "devstack@n-cpu.service.d", "nova-enlightened.conf")


# -- install ------------------------------------------------------------------------------------


def test_install_makes_an_editable_install(stack: dict[str, str]) -> None:
    assert plugin(stack, "stack", "install") == f"setup_develop {TOP}\n"


def test_a_compute_host_of_another_hypervisor_is_refused_before_anything_is_installed(
    stack: dict[str, str],
) -> None:
    done = run(stack | {"VIRT_DRIVER": "ironic"}, "stack", "install")
    assert done.returncode != 0
    assert "VIRT_DRIVER=libvirt" in done.stderr
    assert done.stdout == ""


# -- configuration ------------------------------------------------------------------------------


def test_the_defaults_watch_and_move_nothing(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    read = ours(stack)
    assert read.enlightened_remediation.mode == "audit"
    assert read.enlightened.default_policy == "stock"
    assert read.enlightened.link_tls == "required"
    assert read.enlightened.link_address == stack["HOST_IP"]


def test_configuration_names_only_options_that_exist(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    read = ours(stack)
    file = pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "nova_enlightened.conf")
    group, found = "", 0
    for line in file.read_text().splitlines():
        if line.startswith("["):
            group = line.strip("[]")
        elif line and group == "DEFAULT":
            read[line.split(" = ")[0]]
        elif line:
            option = line.split(" = ")[0]
            # keystoneauth registers those of its plugin when it is loaded
            assert option in read[group] or option == "username", option
            found += 1
    assert found > 10


def test_a_value_from_local_conf_wins(stack: dict[str, str]) -> None:
    settings = {
        "NOVA_ENLIGHTENED_MODE": "auto",
        "NOVA_ENLIGHTENED_DEFAULT_POLICY": "ordered",
        "NOVA_ENLIGHTENED_LINK_TLS": "off",
        "NOVA_ENLIGHTENED_LINK_ADDRESS": "198.51.100.7",
    }
    plugin(stack | settings, "stack", "post-config")
    read = ours(stack)
    assert read.enlightened_remediation.mode == "auto"
    assert read.enlightened.default_policy == "ordered"
    assert read.enlightened.link_tls == "off"
    assert read.enlightened.link_address == "198.51.100.7"
    assert not pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "tls").exists()


def test_hosts_stream_from_no_store_unless_one_is_named(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    assert ours(stack).enlightened_streaming.stores == []


def test_hosts_stream_from_the_stores_of_local_conf(stack: dict[str, str]) -> None:
    stack["NOVA_ENLIGHTENED_STORES"] = "https://a.example.org/,file:///srv/a/"
    plugin(stack, "stack", "post-config")
    streaming = ours(stack).enlightened_streaming
    assert streaming.stores == ["https://a.example.org/", "file:///srv/a/"]
    assert streaming.cache_limit == 10240


def test_nova_is_given_the_driver_and_may_use_post_copy(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    read = nova(stack)
    assert read.compute_driver == "enlightened.EnlightenedLibvirtDriver"
    assert read.libvirt.live_migration_permit_post_copy


def test_nova_compute_is_run_by_our_command_with_its_own_arguments(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    lines = drop_in(stack).read_text().splitlines()
    assert lines[:2] == ["[Service]", "ExecStart="]  # or systemd would have two commands
    assert lines[2:] == [
        "ExecStart=/opt/stack/data/venv/bin/nova-enlightened-compute"
        " --config-file /etc/nova/nova-cpu.conf"
        f" --config-file {stack['NOVA_ENLIGHTENED_CONF_DIR']}/nova_enlightened.conf"
    ]


def test_the_remediator_reaches_novas_api_and_its_password_is_not_for_all_to_read(
    stack: dict[str, str],
) -> None:
    plugin(stack, "stack", "post-config")
    group = ours(stack).enlightened_remediation
    assert (group.auth_type, group.interface) == ("password", "public")
    assert group.region_name == "RegionOne"
    assert group.cafile == stack["SSL_BUNDLE_FILE"]
    assert pathlib.Path(group.state_path).is_dir()
    file = pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "nova_enlightened.conf")
    assert not file.stat().st_mode & stat.S_IRWXO


def test_the_scheduler_gets_the_filter_and_the_weigher_beside_its_own(
    stack: dict[str, str],
) -> None:
    plugin(stack, "stack", "post-config")
    group = nova(stack).filter_scheduler
    assert group.available_filters == ["nova.scheduler.filters.all_filters", FILTER]
    assert group.enabled_filters == ["ComputeFilter", "ImagePropertiesFilter", "ContentionFilter"]
    assert group.weight_classes == ["nova.scheduler.weights.all_weighers", WEIGHER]


def test_what_others_gave_the_scheduler_stays(stack: dict[str, str]) -> None:
    pathlib.Path(stack["NOVA_CONF"]).write_text(
        "[filter_scheduler]\navailable_filters = their.Filter\navailable_filters = more.Filters\n"
        "enabled_filters = ComputeFilter,Theirs\nweight_classes = their.Weigher\n"
    )
    plugin(stack, "stack", "post-config")
    group = nova(stack).filter_scheduler
    assert group.available_filters == ["their.Filter", "more.Filters", FILTER]
    assert group.enabled_filters == ["ComputeFilter", "Theirs", "ContentionFilter"]
    assert group.weight_classes == ["their.Weigher", WEIGHER]


def test_scheduling_can_be_left_to_nova(stack: dict[str, str]) -> None:
    plugin(stack | {"NOVA_ENLIGHTENED_SCHEDULING": "False"}, "stack", "post-config")
    assert "filter_scheduler" not in pathlib.Path(stack["NOVA_CONF"]).read_text()


def test_with_a_bus_for_each_cell_services_hear_the_buses_that_hosts_report_on(
    stack: dict[str, str],
) -> None:
    plugin(stack | {"CELLSV2_SETUP": "superconductor"}, "stack", "post-config")
    base = "rabbit://stackrabbit:secret@192.0.2.10:5672"
    assert ours(stack).transport_url == f"{base}/nova_cell1"
    assert nova(stack).enlightened_scheduler.transport_url == [
        f"{base}/nova_cell1",
        f"{base}/nova_cell2",
    ]


def test_with_one_bus_the_scheduler_hears_its_own(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    assert ours(stack).transport_url == "rabbit://stackrabbit:secret@192.0.2.10:5672/"
    assert nova(stack).enlightened_scheduler.transport_url == []


def test_a_compute_host_alone_has_no_credentials_and_touches_no_scheduler(
    stack: dict[str, str],
) -> None:
    plugin(stack | {"ENABLED_SERVICES": "n-cpu"}, "stack", "post-config")
    assert ours(stack).enlightened_remediation.auth_type is None
    assert "filter_scheduler" not in pathlib.Path(stack["NOVA_CONF"]).read_text()


def test_a_controller_alone_gets_no_driver_and_no_certificates(stack: dict[str, str]) -> None:
    plugin(stack | {"ENABLED_SERVICES": "n-api,n-sch"}, "stack", "post-config")
    assert nova(stack).compute_driver is None
    assert not drop_in(stack).exists()
    assert not pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "tls").exists()


# -- certificates -------------------------------------------------------------------------------


def test_certificates_are_made_for_the_name_of_the_compute_service(stack: dict[str, str]) -> None:
    pathlib.Path(stack["NOVA_CONF"]).write_text("[DEFAULT]\nhost = compute7\n")
    plugin(stack, "stack", "post-config")
    read = ours(stack)
    assert read.enlightened_agent.host == "compute7"
    own = x509.load_pem_x509_certificate(
        pathlib.Path(read.enlightened.link_tls_certificate).read_bytes()
    )
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["compute7"]
    authority = pathlib.Path(read.enlightened.link_tls_ca).read_bytes()
    own.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    key = pathlib.Path(read.enlightened.link_tls_key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_certificates_that_are_given_are_left_alone(stack: dict[str, str]) -> None:
    tls = pathlib.Path(stack["NOVA_ENLIGHTENED_CONF_DIR"], "tls")
    tls.mkdir(parents=True)
    for name in ("ca.pem", "compute1.pem", "compute1.key"):
        (tls / name).write_text(f"given {name}")
    plugin(stack, "stack", "post-config")
    assert files(tls) == {
        name: f"given {name}".encode() for name in ("ca.pem", "compute1.pem", "compute1.key")
    }


# -- the system ---------------------------------------------------------------------------------


def test_qemu_may_wait_for_pages_and_make_its_socket(stack: dict[str, str]) -> None:
    said = plugin(stack, "stack", "post-config")
    sysctl = pathlib.Path(stack["NOVA_ENLIGHTENED_SYSCTL"])
    assert sysctl.read_text() == "vm.unprivileged_userfaultfd = 1\n"
    assert f"--load={sysctl}" in said
    rule = f"{stack['NOVA_ENLIGHTENED_RUN_DIR']}/*.sock rw,\n"
    assert pathlib.Path(stack["NOVA_ENLIGHTENED_APPARMOR"]).read_text() == rule


def test_without_apparmor_nothing_is_written_for_it(
    stack: dict[str, str], tmp_path: pathlib.Path
) -> None:
    absent = tmp_path / "none" / "libvirt-qemu"
    plugin(stack | {"NOVA_ENLIGHTENED_APPARMOR": str(absent)}, "stack", "post-config")
    assert not absent.parent.exists()


def test_the_system_can_be_left_alone(stack: dict[str, str]) -> None:
    alone = {"NOVA_ENLIGHTENED_APPARMOR": "", "NOVA_ENLIGHTENED_SYSCTL": ""}
    assert "sysctl" not in plugin(stack | alone, "stack", "post-config")
    plugin(stack | alone, "clean")


# -- services -----------------------------------------------------------------------------------


def test_extra_starts_the_agent_as_root_and_the_remediator(stack: dict[str, str]) -> None:
    own = f"{stack['NOVA_ENLIGHTENED_CONF_DIR']}/nova_enlightened.conf"
    programs = stack["NOVA_BIN_DIR"]
    assert plugin(stack, "stack", "extra").splitlines() == [
        f"run nova-enlightened-agent: {programs}/nova-enlightened-agent"
        f" --config-file /etc/nova/nova-cpu.conf --config-file {own} (group '', user 'root')",
        f"run nova-enlightened-remediator: {programs}/nova-enlightened-remediator"
        f" --config-file {own} (group '', user '')",
    ]


@pytest.mark.parametrize(
    ("enabled", "started"),
    [("n-cpu", "nova-enlightened-agent"), ("n-api,n-sch", "nova-enlightened-remediator")],
)
def test_each_host_runs_its_own_service_only(
    stack: dict[str, str], enabled: str, started: str
) -> None:
    said = plugin(stack | {"ENABLED_SERVICES": enabled}, "stack", "extra")
    assert [line.split(":")[0] for line in said.splitlines()] == [f"run {started}"]


def test_a_service_that_is_disabled_is_not_started(stack: dict[str, str]) -> None:
    off = {"DISABLED_SERVICES": "nova-enlightened-remediator"}
    assert "remediator" not in plugin(stack | off, "stack", "extra")
    plugin(stack | off, "stack", "post-config")
    assert ours(stack).enlightened_remediation.auth_type is None


def test_unstack_stops_both_and_leaves_n_cpu_to_devstack(stack: dict[str, str]) -> None:
    plugin(stack, "stack", "post-config")
    assert plugin(stack, "unstack").splitlines() == [
        "stop nova-enlightened-remediator",
        "stop nova-enlightened-agent",
    ]
    assert not drop_in(stack).exists()


# -- again, and back ----------------------------------------------------------------------------


def test_stacking_again_changes_nothing(stack: dict[str, str], tmp_path: pathlib.Path) -> None:
    plugin(stack, "stack", "post-config")
    first = files(tmp_path)
    plugin(stack, "stack", "post-config")
    assert files(tmp_path) == first


def test_clean_removes_what_was_written(stack: dict[str, str], tmp_path: pathlib.Path) -> None:
    theirs = pathlib.Path(stack["NOVA_ENLIGHTENED_APPARMOR"])
    theirs.write_text("/their/rule rw,\n")
    plugin(stack, "stack", "post-config")
    plugin(stack, "unstack")
    plugin(stack, "clean")
    assert set(files(tmp_path)) == {"nova.conf", str(theirs.relative_to(tmp_path))}
    assert theirs.read_text() == "/their/rule rw,\n"


def test_cleaning_twice_is_harmless(stack: dict[str, str]) -> None:
    plugin(stack, "clean")
    plugin(stack, "clean")


def test_a_host_without_nova_is_left_alone(stack: dict[str, str]) -> None:
    for phase in ("install", "post-config", "extra"):
        assert plugin(stack | {"ENABLED_SERVICES": "rabbit,key"}, "stack", phase) == ""


def test_other_phases_do_nothing(stack: dict[str, str]) -> None:
    for phase in (("stack", "pre-install"), ("stack", "test-config")):
        assert plugin(stack, *phase) == ""
