# SPDX-License-Identifier: Apache-2.0
"""The tables that the laboratory's cloud is made of agree with each other."""

import configparser
from pathlib import Path

import pytest

from lab.openstack import configuration, openrc, services
from lab.openstack.configuration import Driver, Settings
from lab.openstack.places import PORTS, Places

PLACES = Places(Path("/run/x"), Path("/data"), Path("/venv/bin"))


def test_an_option_given_several_times_stands_on_a_line_for_each() -> None:
    assert configuration.text({"a": {"b": ("c", "d"), "e": 1}}) == "[a]\nb = c\nb = d\ne = 1\n"


def test_what_is_set_besides_goes_over_what_the_laboratory_sets() -> None:
    extra = {"enlightened_agent": {"sample_interval": 0.5, "link_bandwidth": 7}}
    files = configuration.files(PLACES, Settings(link_mbit=400.0, extra=extra))
    agent = files["host1-enlightened.conf"]["enlightened_agent"]
    assert agent["sample_interval"] == 0.5
    assert agent["link_bandwidth"] == 7
    assert "collectors" in agent


@pytest.mark.parametrize("driver", list(Driver))
def test_every_configuration_file_that_a_service_is_given_is_written(driver: Driver) -> None:
    written = configuration.files(PLACES, Settings(driver))
    given = {
        Path(word).name
        for service in services.workers(PLACES, driver)
        for word in service.command
        if word.endswith(".conf")
    }
    assert given
    assert given <= set(written)


@pytest.mark.parametrize("driver", list(Driver))
def test_the_driver_is_all_that_the_driver_changes(driver: Driver) -> None:
    names = {(one.where, one.name) for one in services.workers(PLACES, driver)}
    shared = {name for name in names if not name[1].endswith("-compute")}
    other = {(one.where, one.name) for one in services.workers(PLACES, Driver.STOCK)}
    assert shared == {name for name in other if not name[1].endswith("-compute")}


def test_the_conductor_comes_first() -> None:
    first = next(services.workers(PLACES, Driver.STOCK))
    assert first.name == "nova-conductor"


def test_every_type_of_the_catalogue_is_served() -> None:
    assert {each.serves for each in services.interfaces(PLACES)} == set(PORTS)


def test_no_service_is_told_of_another_run_directory() -> None:
    for name, sections in configuration.files(PLACES, Settings()).items():
        text = configuration.text(sections)
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(text)
        assert "/run/ne-os" not in text, name


def test_what_is_sourced_quotes_the_path_of_the_client(tmp_path: Path) -> None:
    openrc.write(Places(tmp_path, tmp_path, Path("/a venv/bin")), 42)
    text = (tmp_path / "openrc").read_text()
    assert "'/a venv/bin/openstack'" in text
    assert "--target 42" in text
