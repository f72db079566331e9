# SPDX-License-Identifier: Apache-2.0
"""What the documents name is there: commands, options, reasons, log lines, metrics, files."""

import argparse
import configparser
import pathlib
import re
import textwrap

import pytest
from oslo_config import cfg

from nova_enlightened import conf
from nova_enlightened.cmd.manage import command
from nova_enlightened.conf import remediation
from nova_enlightened.remediation import announcements
from nova_enlightened.remediation.eviction_states import State
from nova_enlightened.virt.decision import Reason

TOP = pathlib.Path(__file__).parents[3]
SOURCE = TOP / "doc" / "source"
PAGES = [*sorted(SOURCE.glob("*.rst")), TOP / "README.rst"]
OPERATE = (SOURCE / "operate.rst").read_text()
DECIDE = (SOURCE / "decide.rst").read_text()
TROUBLESHOOT = (SOURCE / "troubleshoot.rst").read_text()
CODE = "\n".join(
    path.read_text()
    for path in sorted((TOP / "nova_enlightened").rglob("*.py"))
    if "conf" not in path.parts
)

# Units and names of this project that are no commands.
NO_COMMANDS = {"nova-enlightened-guest"}


def each(pattern: str) -> list[tuple[str, str]]:
    """(page, what the pattern's group finds) for everything in the documents, once."""
    found = {
        (page.name, match) for page in PAGES for match in re.findall(pattern, page.read_text())
    }
    return sorted(found)


def first_column(text: str, heading: str) -> list[str]:
    """The first cells of the simple table whose heading row begins with `heading`."""
    lines = text.splitlines()
    start = next(
        number
        for number, line in enumerate(lines)
        if line.startswith(heading) and lines[number - 1].startswith("===")
    )
    width = lines[start - 1].index(" ")
    cells = []
    for line in lines[start + 2 :]:
        if line.startswith("==="):
            break
        cells.append(line[:width].strip())
    return [cell for cell in cells if cell]


def options() -> set[tuple[str, str]]:
    return {(group.name, option.dest) for group, found in conf.list_opts() for option in found}


def choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@pytest.mark.parametrize(
    ("page", "name"), each(r"(?<![\w/.@-])(nova-enlightened-[a-z]+)(?![\w./])")
)
def test_a_command_that_is_named_is_installed(page: str, name: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(TOP / "setup.cfg")
    scripts = parser["options.entry_points"]["console_scripts"]
    assert name in NO_COMMANDS or f"{name} = " in scripts, page


@pytest.mark.parametrize(("page", "group"), each(r"\[(enlightened\w*)\]"))
def test_a_group_that_is_named_exists(page: str, group: str) -> None:
    assert group in {name for name, _ in options()}, page


@pytest.mark.parametrize(("page", "named"), each(r"``(\[enlightened\w*\] \w+)"))
def test_an_option_that_is_named_with_its_group_exists(page: str, named: str) -> None:
    group, option = named.removeprefix("[").split("] ")
    assert (group, option) in options(), page


def test_options_in_examples_exist() -> None:
    wrong = []
    for page in PAGES:
        group = ""
        for line in page.read_text().splitlines():
            if match := re.fullmatch(r"\s+\[(\w+)\]", line):
                group = match[1]
            elif match := re.fullmatch(r"\s+(\w+) = .*", line):
                if group == remediation.GROUP and (group, match[1]) not in options():
                    wrong.append(match[1])
            elif line and not line.startswith(" "):
                group = ""
    # keystoneauth's, of which two plugins have no common list
    known = {"auth_type", "auth_url", "username", "password", "project_name"}
    assert set(wrong) <= known | {"user_domain_name", "project_domain_name"}


def test_every_group_is_in_the_table_of_who_reads_it() -> None:
    listed = first_column((SOURCE / "configure.rst").read_text(), "Group")
    assert set(listed) == {f"``[{group}]``" for group, _ in options()}


def test_every_reason_of_a_decision_is_explained() -> None:
    assert {cell.strip("`") for cell in first_column(DECIDE, "Word")} == {
        one.value for one in Reason
    }


def test_every_state_of_an_eviction_is_explained() -> None:
    assert set(first_column(OPERATE, "State")) == {
        one.value for one in State if one is not State.PROPOSED
    }


def test_every_notification_is_named() -> None:
    kinds = [
        value
        for value in vars(announcements).values()
        if isinstance(value, str) and value.startswith("eviction.")
    ]
    assert len(kinds) == 5
    for kind in kinds:
        assert kind in OPERATE or f"``{kind.removeprefix('eviction.')}``" in OPERATE


def test_every_subcommand_is_explained() -> None:
    names = set()
    for name, parser in choices(command.parser()).items():
        names |= {f"{name} {inner}" for inner in choices(parser)} or {name}
    table = OPERATE[: OPERATE.index("Have a server leave now")]
    explained = {name for name in names if re.search(rf"^``{name}\b", table, re.MULTILINE)}
    assert explained == names


@pytest.mark.parametrize(
    "line",
    [
        "No guest can leave or arrive",
        "Collector %s:",
        "Not armed: ",
        "%s leaves for %s, %s",
        "Traits of this host are not kept",
        "Audit: would evict",
        "Live migration to ",
        "No host reports",
        "A report was dropped",
        " stays on ",
        "agent of {host}: ",
        "ContentionFilter",
    ],
)
def test_a_line_of_a_log_that_is_explained_is_one_that_is_written(line: str) -> None:
    assert line in CODE
    words = re.split(r"%s|\{\w+\}|[:,] *$", line)
    for word in filter(None, (part.strip(" ,:") for part in words)):
        assert word in re.sub(r"``\n``|\s+", " ", OPERATE + TROUBLESHOOT), word


@pytest.mark.parametrize(("page", "metric"), each(r"``(nova_enlightened_\w+)``"))
def test_a_metric_that_is_named_is_served(page: str, metric: str) -> None:
    name = metric.removeprefix("nova_enlightened_").removesuffix("_total")
    ours = name.removeprefix("remediator_")
    # The agent's by its table of names, the remediator's by its prefix.
    assert f'"{name}"' in CODE or f'f"{{_PREFIX}}_{ours}"' in CODE, page


@pytest.mark.parametrize(
    ("page", "path"), each(r"``((?:etc|devstack|nova_enlightened|lab|bench|tests)/[\w./-]+)``")
)
def test_a_file_of_the_repository_that_is_named_is_there(page: str, path: str) -> None:
    assert (TOP / path).exists(), page


@pytest.mark.parametrize(("page", "target"), each(r"<(doc/source/[\w-]+\.rst)>"))
def test_the_first_page_links_to_pages_that_are_there(page: str, target: str) -> None:
    assert (TOP / target).exists(), page


def test_the_first_page_stays_short() -> None:
    assert len((TOP / "README.rst").read_text().splitlines()) <= 66


@pytest.mark.parametrize(("page", "target"), each(r"``make ([a-z-]+)"))
def test_a_target_of_make_that_is_named_exists(page: str, target: str) -> None:
    assert re.search(rf"^{target}:", (TOP / "Makefile").read_text(), re.MULTILINE), page


def test_the_example_for_the_scheduler_is_what_nova_reads(tmp_path: pathlib.Path) -> None:
    example = OPERATE[OPERATE.index("   [filter_scheduler]\n") :].split("\n\n")[0]
    file = tmp_path / "nova.conf"
    file.write_text(textwrap.dedent(example))
    read = cfg.ConfigOpts()
    # As in nova/conf/scheduler.py: of a list given twice, only the last counts.
    read.register_opts(
        [cfg.MultiStrOpt("available_filters"), cfg.ListOpt("weight_classes")],
        group="filter_scheduler",
    )
    read(["--config-file", str(file)], project="test", default_config_files=[])
    for found, novas in (
        (read.filter_scheduler.available_filters, "nova.scheduler.filters.all_filters"),
        (read.filter_scheduler.weight_classes, "nova.scheduler.weights.all_weighers"),
    ):
        assert found[0] == novas
        module, _, name = found[1].rpartition(".")
        source = TOP / f"{module.replace('.', '/')}.py"
        assert f"class {name}(" in source.read_text()
