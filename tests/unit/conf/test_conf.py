# SPDX-License-Identifier: Apache-2.0
"""The options, their bounds, and the committed sample file."""

import pathlib

import pytest
from oslo_config import cfg, generator

from nova_enlightened import conf, exception

TOP = pathlib.Path(__file__).parents[3]
ETC = TOP / "etc" / "nova_enlightened"


def configured(tmp_path: pathlib.Path, text: str = "") -> cfg.ConfigOpts:
    """A configuration read from `text` as ``[enlightened]``."""
    file = tmp_path / "test.conf"
    file.write_text(f"[{conf.GROUP}]\n{text}\n")
    config = cfg.ConfigOpts()
    conf.register_opts(config)
    config(["--config-file", str(file)], project="test", default_config_files=[])
    return config


def read_all(config: cfg.ConfigOpts) -> list[object]:
    """Every option's value; oslo.config checks a value when it is read."""
    return [config[group.name][option.dest] for group, opts in conf.list_opts() for option in opts]


def test_defaults_agree_with_each_other(tmp_path: pathlib.Path) -> None:
    conf.check(configured(tmp_path))


def test_the_link_is_encrypted_unless_configured_otherwise(tmp_path: pathlib.Path) -> None:
    assert configured(tmp_path).enlightened.link_tls == "required"
    assert configured(tmp_path, "link_tls = off").enlightened.link_tls == "off"


def test_options_can_be_registered_twice_on_one_object() -> None:
    config = cfg.ConfigOpts()
    conf.register_opts(config)
    conf.register_opts(config)


def test_two_configuration_objects_are_independent(tmp_path: pathlib.Path) -> None:
    ours, other = configured(tmp_path), configured(tmp_path)
    ours.set_override("ordering_policy", "stock", group=conf.GROUP)
    assert other.enlightened.ordering_policy == "heat"


@pytest.mark.parametrize(
    "text",
    [
        "injection_window_floor = 1025",
        "injection_window_cap = 255",
        "link_port_min = 50000",
        "link_port_max = 49000",
    ],
)
def test_crossing_bounds_are_refused(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(exception.ConfigError, match=text.split(" = ")[0]):
        conf.check(configured(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "link_tls = maybe",
        "link_port_min = 80",
        "link_address = not an address",
        "arm_cpu_limit = 0",
        "arm_interval = 0",
        "injection_window_floor = 0",
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(cfg.ConfigFileValueError, match=text.split(" = ")[0]):
        read_all(configured(tmp_path, text))


def test_every_option_has_help_of_more_than_one_sentence() -> None:
    for _, options in conf.list_opts():
        for option in options:
            assert option.help is not None, option.name
            assert option.help.count(".") > 1, option.name


def test_the_committed_sample_is_what_the_generator_writes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TOP)
    current = tmp_path / "current.sample"
    generator.main(
        ["--config-file", str(ETC / "config-generator.conf"), "--output-file", str(current)]
    )
    committed = ETC / "nova_enlightened.conf.sample"
    assert current.read_text() == committed.read_text(), "run 'make sample' and commit it"
