# SPDX-License-Identifier: Apache-2.0
"""The agent's options: what contradicts itself is refused by name."""

import pathlib

import pytest
from oslo_config import cfg

from nova_enlightened import conf, exception
from nova_enlightened.conf import agent, placement


def configured(tmp_path: pathlib.Path, text: str = "") -> cfg.ConfigOpts:
    file = tmp_path / "test.conf"
    file.write_text(f"[{agent.GROUP}]\n{text}\n")
    return conf.read([str(file)])


@pytest.mark.parametrize(
    "text",
    [
        "cpu_warn = 0.3",
        "cpu_act = 0.05",
        "cpu_warn = 0",
        "memory_some_warn = 0.5",
        "memory_full_act = 0.001",
        "swap_in_warn = 3000",
        "report_interval = 0.5",
    ],
)
def test_bounds_that_contradict_each_other_are_refused(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(exception.ConfigError, match=text.split(" = ")[0]):
        configured(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["sample_interval = 0", "cpu_act = 2", "metrics_port = 70000", "link_host = not an address"],
)
def test_a_value_out_of_range_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    name = text.split(" = ")[0]
    with pytest.raises(cfg.ConfigFileValueError, match=name):
        getattr(configured(tmp_path, text)[agent.GROUP], name)


def test_placements_options_are_those_that_nova_reads(tmp_path: pathlib.Path) -> None:
    config = configured(tmp_path)
    placement.register_opts(config)
    placement.register_opts(config)
    assert config.placement.auth_type is None
    assert config.placement.service_type == "placement"
    assert config.placement.valid_interfaces == ["internal", "public"]
