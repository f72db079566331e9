# SPDX-License-Identifier: Apache-2.0
import logging
import os
from typing import Any

import oslo_messaging
import pytest
from oslo_config import cfg

from nova_enlightened.conf import scheduler as options
from nova_enlightened.contention.report import HostReport, Level
from nova_enlightened.scheduler import reports
from tests.unit.scheduler.requests import report


class Ear:
    """A listener that was started or not, and has heard of one host."""

    def __init__(self, begun: list[int]) -> None:
        self._begun = begun

    def start(self) -> None:
        self._begun.append(os.getpid())

    def stop(self) -> None:
        self._begun.clear()

    def current(self) -> list[HostReport]:
        return [report("a")]


def test_nothing_is_started_before_the_first_question() -> None:
    begun: list[int] = []
    heard = reports.Reports(cfg.ConfigOpts(), lambda _: Ear(begun))
    assert begun == []
    assert heard.current() == [report("a")]
    assert begun == [os.getpid()]


def test_each_process_listens_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    heard = reports.Reports(cfg.ConfigOpts(), lambda _: Ear(begun))
    heard.current()
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as it is in a worker that was forked now
    heard.current()
    heard.current()
    assert len(begun) == 2


def test_a_listener_that_was_stopped_is_started_by_the_next_question() -> None:
    begun: list[int] = []
    heard = reports.Reports(cfg.ConfigOpts(), lambda _: Ear(begun))
    heard.stop()
    heard.current()
    heard.stop()
    assert begun == []
    heard.current()
    assert begun == [os.getpid()]


def test_a_bus_that_cannot_be_used_leaves_every_host_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: Any) -> reports.Listener:
        raise oslo_messaging.MessagingException("no such driver")

    heard = reports.Reports(cfg.ConfigOpts(), refuse)
    with caplog.at_level(logging.WARNING):
        assert heard.current() == []
        assert heard.current() == []
    assert len(caplog.records) == 1


class Bus(Ear):
    """One that has heard this."""

    def __init__(self, *told: HostReport) -> None:
        super().__init__([])
        self._told = list(told)

    def current(self) -> list[HostReport]:
        return self._told


def test_hosts_of_all_cells_are_heard() -> None:
    cells = reports.Listeners([Bus(report("a"), report("b")), Bus(report("c"))])
    assert sorted(one.host for one in cells.current()) == ["a", "b", "c"]


def test_of_a_host_that_is_heard_on_two_buses_the_last_word_counts() -> None:
    older, newer = report("a", at=1.0), report("a", Level.ACT, at=2.0)
    for told in ((older, newer), (newer, older)):
        assert reports.Listeners([Bus(one) for one in told]).current() == [newer]


@pytest.mark.parametrize(
    "urls, expected", [([], [None]), (["fake://one", "fake://two"], ["fake://one", "fake://two"])]
)
def test_every_bus_that_is_configured_is_listened_on(
    monkeypatch: pytest.MonkeyPatch, urls: list[str], expected: list[str | None]
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(reports.rpc, "get_transport", lambda _, url: asked.append(url))
    monkeypatch.setattr(reports.rpc, "ReportListener", lambda *_: Bus())
    config = cfg.ConfigOpts()
    config.register_opts([cfg.StrOpt("host", default="controller")])
    options.register_opts(config)
    config.set_override("transport_url", urls, group=options.GROUP)
    reports.listen(config)
    assert asked == expected


def test_a_configuration_has_one_for_all_that_ask() -> None:
    config = cfg.ConfigOpts()
    assert reports.shared(config) is reports.shared(config)
    assert config.enlightened_scheduler.report_max_age == 10.0
