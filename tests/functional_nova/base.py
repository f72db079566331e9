# SPDX-License-Identifier: Apache-2.0
"""Nova with two compute services that run this project's driver, and an agent that is told what
to answer.
"""

import functools
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import fixtures
import libvirt
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.tests.functional.libvirt import base

from nova_enlightened import exception
from nova_enlightened.virt import loading

TIMEOUT_S = 20.0
API_PASTE = os.path.join(sys.prefix, "etc", "nova", "api-paste.ini")
DRIVER = "enlightened.EnlightenedLibvirtDriver"
RELAYS = "7f1d0a54-7a0b-4c07-9a6e-6a52a9a3c7de"
RELAY_URI = "unix:///run/nova-enlightened/7f1d0a54.sock"
NOT_WANTED = {"wanted": False, "ordered": False, "reason": "no order"}
NO_ORDER = {"wanted": True, "ordered": False, "reason": "the peer has no agent"}
ORDERED = {
    "wanted": True,
    "ordered": True,
    "reason": "urgent order",
    "migrate_uri": RELAY_URI,
    "migration": RELAYS,
}


def libvirt_with_novas_errors() -> types.ModuleType:
    """The real module with the error class of Nova's fake, which has only Nova's constants."""
    module = types.ModuleType("libvirt")
    module.__dict__.update(libvirt.__dict__)
    module.libvirtError = fakelibvirt.libvirtError
    return module


def failure(code: int, words: str = "libvirt says no") -> Exception:
    """An error as libvirt's binding raises it."""
    return fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, words, error_code=code, error_domain=fakelibvirt.VIR_FROM_QEMU
    )


class Agent:
    """In place of `rpc.HostAPI`: answers with `answer`, or raises it, and remembers the calls."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | exception.EnlightenedError = NOT_WANTED
        self.asked: list[dict[str, Any]] = []
        self.ended: list[tuple[str, str, str]] = []
        self.decisions: list[tuple[str, str]] = []
        self.followed: list[dict[str, Any]] = []
        self.recovered: dict[str, Any] = {}
        self.there = "unknown"

    def prepare_eviction(self, host: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append({"host": host, **arguments})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end_eviction(self, host: str, migration: str, outcome: str) -> dict[str, Any]:
        self.ended.append((host, migration, outcome))
        return {}

    def follow_eviction(self, host: str, **departure: Any) -> dict[str, Any]:
        self.followed.append(departure)
        return {}

    def recovery(self, host: str, instance: str) -> dict[str, Any]:
        return self.recovered

    def arrival(self, host: str, instance: str, migration: str | None) -> dict[str, Any]:
        return {"domain": self.there, "relay": "unknown"}

    def note_decision(self, host: str, instance: str, kind: str, reason: str) -> None:
        self.decisions.append((kind, reason))


class MigrationTestCase(base.LibvirtMigrationMixin, base.ServersTestBase):
    """Two hosts, `src` and `dest`, on shared storage.

    A migration ends well once libvirt was asked for it, an urgent one once it has been switched
    too. While `released` is clear none ends.
    """

    microversion = "2.80"
    ADMIN_API = True
    PERMIT_POST_COPY = True
    NATIVE_TLS = False

    def setUp(self) -> None:
        loading.register()
        self.agent = Agent()
        self.calls: list[dict[str, Any]] = []
        self.defined: list[str] = []
        self.failures: list[Exception] = []
        self.after_the_switch: Callable[[Any, dict[str, Any]], None] | None = None
        self.switched = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self.flags(live_migration_permit_post_copy=self.PERMIT_POST_COPY, group="libvirt")
        self.flags(live_migration_with_native_tls=self.NATIVE_TLS, group="libvirt")
        super().setUp()
        self.flags(state_path=self.useFixture(fixtures.TempDir()).path)
        self._patch_libvirt()
        self.useFixture(
            fixtures.MonkeyPatch("nova_enlightened.virt.driver.HostAPI", lambda _: self.agent)
        )
        self.shared_storage = True
        for question in ("_is_shared_block_storage", "_check_shared_storage_test_file"):
            self.useFixture(
                fixtures.MonkeyPatch(
                    f"nova.virt.libvirt.driver.LibvirtDriver.{question}",
                    lambda *_, **__: self.shared_storage,
                )
            )
        self.start_computes()

    def start_computes(self, source: str = "src", destination: str = "dest") -> None:
        """Start two more compute services, which the next migration goes between."""
        self.start_compute(hostname=source)
        self.start_compute(hostname=destination)
        self.src = self.computes[source]
        self.dest = self.computes[destination]

    def _setup_compute_service(self) -> None:
        super()._setup_compute_service()
        self.flags(compute_driver=DRIVER)
        self.flags(api_paste_config=API_PASTE, group="wsgi")

    def _patch_libvirt(self) -> None:
        both = libvirt_with_novas_errors()
        for module in (
            "virt.urgent",
            "virt.watched",
            "virt.guarded",
            "virt.departing",
            "host.switch",
            "host.standing",
        ):
            self.useFixture(fixtures.MonkeyPatch(f"nova_enlightened.{module}.libvirt", both))
        test = self

        def switch(domain: Any, flags: int = 0) -> None:
            if domain._job_type != fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED:
                raise failure(fakelibvirt.VIR_ERR_OPERATION_INVALID)
            domain._state = fakelibvirt.VIR_DOMAIN_PAUSED
            test.switched.set()

        def state(domain: Any, flags: int = 0) -> list[int]:
            paused = domain._state == fakelibvirt.VIR_DOMAIN_PAUSED
            return [domain._state, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY if paused else 0]

        def connect(domain: Any) -> Any:
            return types.SimpleNamespace(getVersion=lambda: 7_002_000, getURI=no_other)

        def no_other() -> str:
            raise failure(fakelibvirt.VIR_ERR_INTERNAL_ERROR)

        define = fakelibvirt.Connection.defineXML

        @functools.wraps(define)
        def remember(connection: Any, xml: str) -> Any:
            test.defined.append(xml)
            return define(connection, xml)

        for name, replacement in (
            ("Domain.migrateStartPostCopy", switch),
            ("Domain.state", state),
            ("Domain.connect", connect),
            ("Connection.defineXML", remember),
        ):
            self.useFixture(
                fixtures.MonkeyPatch(f"nova.tests.fixtures.libvirt.{name}", replacement)
            )

    def _migrate_stub(
        self, domain: Any, destination: str, params: dict[str, Any], flags: int
    ) -> None:
        """In place of libvirt's migration."""
        self.calls.append({"destination": destination, "params": params, "flags": flags})
        if self.failures:
            raise self.failures.pop(0)
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
        if self.agent.decisions and self.agent.decisions[-1][0] != "stock":
            assert self.switched.wait(TIMEOUT_S)
        assert self.released.wait(TIMEOUT_S)
        if self.after_the_switch is not None:
            self.after_the_switch(domain, params)
        if domain._job_type == fakelibvirt.VIR_DOMAIN_JOB_CANCELLED:
            raise failure(libvirt.VIR_ERR_OPERATION_ABORTED, "canceled by client")
        connection = self.dest.driver._host.get_connection()
        connection.createXML(params["destination_xml"], "")
        domain.complete_job()

    def create(self, **arguments: Any) -> Any:
        """A server on the source host, without networks unless told otherwise."""
        wanted = {"networks": "none", **arguments}
        self.server = self._create_server(host=self.src.host, **wanted)
        return self.server

    def expect_rollback(self) -> Callable[[], None]:
        """Call before a migration that fails; what this answers waits until Nova has done with it,
        and asserts that the server is as it was.
        """
        over = threading.Event()
        manager = self.src.manager
        migrates = manager._do_live_migration

        def watched(*arguments: Any, **keywords: Any) -> None:
            try:
                migrates(*arguments, **keywords)
            finally:
                over.set()

        manager._do_live_migration = watched

        def assert_it_stayed() -> None:
            self.assertTrue(over.wait(TIMEOUT_S))
            server = self.admin_api.get_server(self.server["id"])
            self.assertEqual("src", server["OS-EXT-SRV-ATTR:host"])
            self.assertEqual("ACTIVE", server["status"])
            usage = self._get_provider_usages(self.compute_rp_uuids["dest"])
            self.assertEqual(0, usage["VCPU"])

        return assert_it_stayed

    def image(self, **properties: str) -> str:
        """The id of an image with these properties."""
        image = dict(self.glance.image1)
        image["id"] = "e4d5b1f4-5d36-4d0c-9d2c-3f6f7d1c5a11"
        image["properties"] = {**image["properties"], **properties}
        self.glance.create(None, image)
        return str(image["id"])

    def migrate(self) -> dict[str, Any]:
        """Live-migrate the server to its end; what libvirt was asked last."""
        self._live_migrate(self.server, "completed", host=self.dest.host)
        self.assertEqual(
            self.dest.host, self.admin_api.get_server(self.server["id"])["OS-EXT-SRV-ATTR:host"]
        )
        return self.calls[-1]
