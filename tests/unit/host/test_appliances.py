# SPDX-License-Identifier: Apache-2.0
"""Servers that stream, as this host's agent looks after them."""

import dataclasses
import pathlib
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from oslo_config import cfg

from nova_enlightened import conf, exception
from nova_enlightened.host import appliance_run, appliances, clones, players, streaming
from nova_enlightened.host.appliance_run import Order, Phase, Run
from nova_enlightened.transfer.player_spec import PlayerSpec

SERVER = "6b0a3c52-67a0-4f0c-9a54-8b4a7b6c1d11"
DIGEST = "a1" * 32
WAIT_S = 10.0
LEARN_S = 60.0


class Player:
    """In place of a player process: `told` is what it says of itself."""

    def __init__(self, spec: PlayerSpec) -> None:
        self.spec = spec
        self.pid = 1
        self.alive = True
        self.told: dict[str, Any] = {"phase": "buffering", "percent": 0.0, "error": None}
        self.asked: list[str] = []

    def state(self) -> Mapping[str, Any]:
        return self.told

    def play(self) -> None:
        self.asked.append("play")

    def fill(self) -> None:
        self.asked.append("fill")

    def stop(self, seconds: float = 0.0) -> None:
        self.asked.append("stop")
        self.alive = False

    def trace(self) -> pathlib.Path:
        return pathlib.Path(self.spec.trace)


class Domain:
    """A domain that says it lies on an export until its disk was pulled."""

    def __init__(self) -> None:
        self.active = 1
        self.below = "<backingStore><source protocol='nbd'/></backingStore>"
        self.did: list[str] = []

    def isActive(self) -> int:
        return self.active

    def name(self) -> str:
        return "instance-00000001"

    def resume(self) -> None:
        self.did.append("resume")

    def XMLDesc(self, flags: int = 0) -> str:
        disk = f"<disk><target dev='vda'/>{self.below}</disk>"
        return f"<domain><devices>{disk}</devices></domain>"


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> PlayerSpec:
    directory = tmp_path / f"appliance-{SERVER}"
    directory.mkdir()
    return PlayerSpec(
        str(directory), "file:///s/", DIGEST,
        qemu_socket=str(tmp_path / "memory.sock"), nbd_sockets={"vda": str(tmp_path / "vda.nbd")},
    )  # fmt: skip


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Domain:
    made = Domain()
    answers = {"query-migrate": {"status": "none"}, "query-status": {"status": "paused"}}

    def qmp(_: Any, command: str, **arguments: Any) -> dict[str, Any]:
        made.did.append(command)
        return answers.get(command, {})

    def flatten(_: Any, target: str, seconds: float) -> None:
        made.did.append(f"pull {target}")
        made.below = ""

    monkeypatch.setattr(streaming, "qmp", qmp)
    monkeypatch.setattr(streaming, "flatten", flatten)
    monkeypatch.setattr(streaming, "settle", lambda *_: True)
    monkeypatch.setattr(appliance_run, "FOLLOW_S", 0.01)
    return made


class Started:
    """A run in its thread, and what it was made of."""

    def __init__(self, run: Run, player: Player) -> None:
        self.run = run
        self.player = player

    def until(self, phase: Phase) -> None:
        """Wait for it."""
        pause, left = threading.Event(), WAIT_S
        while self.run.phase is not phase and left > 0:
            pause.wait(0.01)
            left -= 0.01
        assert self.run.phase is phase, self.run.state()


@pytest.fixture
def start(spec: PlayerSpec, domain: Domain) -> Iterator[Callable[..., Started]]:
    made: list[Run] = []

    def begin(order: Order) -> Started:
        player = Player(spec)
        run = Run(
            player, order, lambda: domain, lambda _: None, 0.0, learn_s=LEARN_S,  # type: ignore[arg-type]
        )  # fmt: skip
        made.append(run)
        run.start()
        return Started(run, player)

    yield begin
    for run in made:
        run.let_go()


def ordered(seconds: float = 60.0) -> Order:
    return Order(SERVER, memory=True, identity={}, until=appliance_run.time.time() + seconds)


def test_it_waits_for_what_is_needed_first_and_executes_then(
    start: Callable[..., Started], domain: Domain
) -> None:
    started = start(ordered())
    assert started.run.state()["phase"] == "buffering"
    assert domain.did == []
    started.player.told = {"phase": "buffering", "ready": True}
    started.until(Phase.STREAMING)
    assert domain.did == [
        "query-migrate", "migrate-set-capabilities", "migrate-incoming", "query-status", "resume"
    ]  # fmt: skip
    assert started.player.asked == ["play"]


def test_when_all_is_here_the_disk_is_made_whole_and_the_player_goes(
    start: Callable[..., Started], domain: Domain, spec: PlayerSpec
) -> None:
    started = start(ordered())
    started.player.told = {"phase": "complete", "ready": True, "executing": True}
    started.until(Phase.DONE)
    assert "pull vda" in domain.did
    assert started.player.asked[-1] == "stop"
    assert not pathlib.Path(spec.run_directory).exists()


def test_a_chunk_that_cannot_be_had_is_told_in_the_players_words(
    start: Callable[..., Started],
) -> None:
    started = start(ordered())
    started.player.told = {"phase": "failed", "error": "pack abc: 404"}
    started.until(Phase.FAILED)
    assert started.run.state()["error"] == "pack abc: 404"


def test_a_start_has_its_time(start: Callable[..., Started]) -> None:
    started = start(ordered(seconds=0.0))
    started.until(Phase.FAILED)
    assert "not in time" in str(started.run.state()["error"])


def test_an_agent_that_was_restarted_does_not_start_a_guest_twice(
    spec: PlayerSpec, domain: Domain, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    executing = {"phase": "streaming", "ready": True, "executing": True}
    monkeypatch.setattr(Player, "state", lambda _: executing)
    start(ordered()).until(Phase.STREAMING)
    assert "migrate-incoming" not in domain.did


def test_a_player_that_was_killed_is_replaced(
    start: Callable[..., Started], domain: Domain, spec: PlayerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Player(spec)
    new.told = {"phase": "complete", "executing": True}
    monkeypatch.setattr(streaming, "recover", lambda *_, **__: new)
    started = start(ordered())
    started.player.told = {"phase": "streaming", "ready": True, "executing": True}
    started.until(Phase.STREAMING)
    started.player.alive = False
    started.until(Phase.DONE)
    assert started.run.player is new


def test_a_disk_alone_is_made_whole_when_its_domain_runs(
    start: Callable[..., Started], domain: Domain
) -> None:
    domain.active = 0
    started = start(Order(SERVER, memory=False))
    started.player.told = {"phase": "complete"}
    domain.active = 1
    started.until(Phase.DONE)
    assert "migrate-incoming" not in domain.did


def test_a_trace_is_kept_where_its_owner_lets_it(
    start: Callable[..., Started], domain: Domain, spec: PlayerSpec, tmp_path: pathlib.Path
) -> None:
    pathlib.Path(spec.trace).write_bytes(b"trace")
    kept = tmp_path / "traces" / DIGEST / "x.trace"
    started = start(dataclasses.replace(ordered(), trace=str(kept)))
    started.player.told = {"phase": "complete", "ready": True, "executing": True}
    started.until(Phase.DONE)
    assert kept.read_bytes() == b"trace"


def learning(seconds: float) -> dict[str, Any]:
    """What the player of a learning run says after so long."""
    return {
        "phase": "streaming", "ready": True, "executing": True, "executing_since": 100.0,
        "monotonic": 100.0 + seconds, "progress": {"learning": True},
    }  # fmt: skip


def test_a_learning_run_has_its_time_and_everything_is_fetched_then(
    start: Callable[..., Started], domain: Domain
) -> None:
    started = start(ordered())
    started.player.told = learning(LEARN_S)
    started.until(Phase.STREAMING)
    pause, left = threading.Event(), WAIT_S
    while "fill" not in started.player.asked and left > 0:
        pause.wait(0.01)
        left -= 0.01
    assert "fill" in started.player.asked


@pytest.mark.parametrize(
    "told",
    [
        learning(LEARN_S - 1.0),
        {**learning(LEARN_S), "progress": {"learning": False}},
        {**learning(LEARN_S), "executing_since": None},
    ],
    ids=["not yet", "no learning run", "not executing"],
)
def test_nothing_is_fetched_that_a_learning_run_does_not_ask_for(told: dict[str, Any]) -> None:
    assert not appliance_run._learned(told, LEARN_S)


def test_a_server_that_is_deleted_at_once_leaves_its_trace(
    start: Callable[..., Started], domain: Domain, spec: PlayerSpec, tmp_path: pathlib.Path
) -> None:
    pathlib.Path(spec.trace).write_bytes(b"trace")
    kept = tmp_path / "kept.trace"
    started = start(dataclasses.replace(ordered(), trace=str(kept)))
    started.player.told = {"phase": "streaming", "ready": True, "executing": True}
    started.until(Phase.STREAMING)
    started.run.end()
    assert kept.read_bytes() == b"trace"


def test_an_order_outlives_the_agent(tmp_path: pathlib.Path) -> None:
    order = Order(SERVER, memory=True, identity={"hostname": "x"}, until=5.0, trace="/t")
    order.save(str(tmp_path))
    assert Order.load(str(tmp_path)) == order


def test_no_order_is_told_as_such(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.PlayerGone):
        Order.load(str(tmp_path))


# --- what is asked --------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: pathlib.Path) -> cfg.ConfigOpts:
    made = cfg.ConfigOpts()
    conf.register_opts(made)
    made([], project="test", default_config_files=[])
    made.set_override("run_directory", str(tmp_path), "enlightened")
    made.set_override("cache_directory", str(tmp_path / "chunks"), "enlightened_streaming")
    made.set_override("stores", ["https://a.example.org/ok/"], "enlightened_streaming")
    return made


def asked(store: str = "https://a.example.org/ok/", **said: Any) -> dict[str, Any]:
    return {"store": store, "manifest": DIGEST, "plan": None, "memory": True, **said}


@pytest.mark.parametrize(
    "store",
    [
        "https://evil.example.org/",
        "https://a.example.org/",
        "https://a.example.org/ok/../secret/",
        "https://a.example.org/ok?x=",
        "https://a.example.org/okay/",
        "file:///etc/",
        "",
        7,
    ],
)
def test_a_store_that_is_not_listed_is_not_fetched_from(config: cfg.ConfigOpts, store: Any) -> None:
    ours = appliances.Appliances(config, lambda _: None, lambda: None)
    with pytest.raises(exception.AgentRefused, match="stores"):
        ours.prepare(SERVER, asked(store))


@pytest.mark.parametrize("said", [{"manifest": "../x"}, {"plan": "x"}, {"manifest": None}])
def test_a_digest_that_is_none_is_refused(config: cfg.ConfigOpts, said: dict[str, Any]) -> None:
    ours = appliances.Appliances(config, lambda _: None, lambda: None)
    with pytest.raises(exception.AgentRefused, match="SHA-256"):
        ours.prepare(SERVER, asked(**said))


@pytest.mark.parametrize(
    ("said", "options", "records"),
    [
        ({"traced": True}, {}, True),
        ({"traced": False}, {}, False),
        ({"traced": True, "plan": DIGEST}, {}, False),
        ({"traced": True, "memory": False}, {}, False),
        ({"traced": True}, {"learn_time": 0}, False),
        ({"traced": True}, {"trace_directory": ""}, False),
        ({"traced": True}, {"fetch_all": False}, False),
    ],
    ids=["learns", "no consent", "has a plan", "boots", "no time", "keeps none", "not all"],
)
def test_a_server_is_learned_from_where_its_trace_is_kept_and_nobody_has_a_plan(
    config: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
    said: dict[str, Any], options: dict[str, Any], records: bool,
) -> None:  # fmt: skip
    for name, value in {"trace_directory": str(tmp_path / "traces"), **options}.items():
        config.set_override(name, value, "enlightened_streaming")
    specs: list[PlayerSpec] = []

    def start(spec: PlayerSpec) -> Player:
        specs.append(spec)
        raise exception.PlayerError("seen enough")

    manifest = types.SimpleNamespace(disks=[("vda", 1 << 20)])
    ours = appliances.Appliances(config, lambda _: None, lambda: None)
    monkeypatch.setattr(ours, "_manifest", lambda *_: manifest)
    monkeypatch.setattr(players, "start", start)
    with pytest.raises(exception.PlayerError, match="seen enough"):
        ours.prepare(SERVER, asked(**said))
    assert specs[0].record is records


def test_a_host_without_stores_offers_nothing(config: cfg.ConfigOpts) -> None:
    config.set_override("stores", [], "enlightened_streaming")
    assert not appliances.Appliances(config, lambda _: None, lambda: None).offered


def test_a_server_that_does_not_stream_has_no_phase(config: cfg.ConfigOpts) -> None:
    ours = appliances.Appliances(config, lambda _: None, lambda: None)
    assert ours.state(SERVER)["phase"] == "none"
    ours.end(SERVER, kept=False)
    with pytest.raises(exception.PlayerGone):
        ours.play(SERVER, {}, 5.0)


# --- clones ---------------------------------------------------------------------------------------


class Session:
    """A guest's channel; answers the third time it is asked."""

    tries = 0

    def __init__(self, path: str, memory: int) -> None:
        self.path = path

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def clone(self, said: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        Session.tries += 1
        if Session.tries < 3:
            raise exception.GuestUnreachable("no answer")
        return dict(said)


def test_a_guest_is_told_again_until_it_answers_each_time_with_another_seed() -> None:
    Session.tries = 0
    deadline = clones.time.monotonic() + WAIT_S
    told = clones.tell("/x", {"hostname": "web"}, deadline, threading.Event(), Session)  # type: ignore[arg-type]
    assert told["hostname"] == "web"
    assert Session.tries == 3
    assert told["seed"] != clones.message({}, 0.0)["seed"]


def test_a_guest_that_never_answers_is_given_up() -> None:
    Session.tries = -1000
    with pytest.raises(exception.GuestUnreachable):
        clones.tell("/x", {}, clones.time.monotonic(), threading.Event(), Session)  # type: ignore[arg-type]


def test_the_guest_channel_is_found_in_a_running_domains_xml() -> None:
    channel = (
        "<channel type='unix'><source path='/run/c.sock'/>"
        "<target name='org.openstack.enlightened.0'/></channel>"
    )
    assert clones.channel(f"<domain><devices>{channel}</devices></domain>") == "/run/c.sock"
    assert clones.channel("<domain><devices/></domain>") is None
