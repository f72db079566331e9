# SPDX-License-Identifier: Apache-2.0
"""This host's traits in placement: it can do post-copy, stream appliances, it is contended.

nova-compute leaves them alone: it changes the traits it knows as its own in what it last read,
and reads again when somebody else was faster (nova/scheduler/client/report.py, generations).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import openstack.connection
import openstack.exceptions
from keystoneauth1 import exceptions as auth_exceptions
from keystoneauth1 import loading
from oslo_config import cfg

from nova_enlightened import exception
from nova_enlightened.conf import placement as options

LOG = logging.getLogger(__name__)

POST_COPY: Final = "CUSTOM_ENLIGHTENED_POST_COPY"
CONTENDED: Final = "CUSTOM_ENLIGHTENED_CONTENDED"
STREAMING: Final = "CUSTOM_ENLIGHTENED_STREAMING"
OURS: Final = frozenset({POST_COPY, CONTENDED, STREAMING})
MICROVERSION: Final = "1.6"
"""Of the placement API: the first with traits."""
ATTEMPTS: Final = 4
RETRY_S: Final = 30.0
CHECK_S: Final = 300.0
"""After this the provider is looked at again: Nova may have made it anew."""
_CONFLICT: Final = 409
_WRONG: Final = (openstack.exceptions.SDKException, auth_exceptions.ClientException)


class Api(Protocol):
    """The part of a keystoneauth adapter for placement that is used."""

    def get(self, url: str, **arguments: Any) -> Any:
        """A response, of whatever status."""

    def put(self, url: str, **arguments: Any) -> Any:
        """A response, of whatever status."""


def api(conf: cfg.ConfigOpts) -> Callable[[], Api] | None:
    """What opens the placement API by the options of ``[placement]``; None without credentials.

    Opening it asks keystone, and raises ``PlacementError``.

    :raises ConfigError: the options make no sense.
    """
    options.register_opts(conf)
    try:
        auth = loading.load_auth_from_conf_options(conf, options.GROUP)
        if auth is None:
            return None
        session = loading.load_session_from_conf_options(conf, options.GROUP, auth=auth)
    except (*_WRONG, cfg.Error) as error:
        raise exception.ConfigError(f"[{options.GROUP}]: {error}") from error

    def opened() -> Api:
        try:
            connection = openstack.connection.Connection(
                session=session, oslo_conf=conf, service_types=[options.SERVICE_TYPE]
            )
            found: Api = connection.placement
        except _WRONG as error:
            raise exception.PlacementError(f"placement: {error}") from error
        return found

    return opened


def wanted_traits(present: frozenset[str], ours: frozenset[str]) -> frozenset[str]:
    """The provider's traits with `ours` in place of any of this project's."""
    return (present - OURS) | ours


class ProviderTraits:
    """Keeps the traits of one resource provider. Not safe for threads.

    :param node: the provider's name: the hypervisor's host name.
    """

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._uuid: str | None = None

    def keep(self, ours: frozenset[str]) -> bool:
        """Make the provider have exactly these of our traits; whether something was changed.

        :raises PlacementError: it could not be done.
        """
        for _ in range(ATTEMPTS):
            present, generation = self._present()
            wanted = wanted_traits(present, ours)
            if wanted == present:
                return False
            for trait in sorted(ours - present):
                self._asked(self._api.put, f"/traits/{trait}")
            body = {"traits": sorted(wanted), "resource_provider_generation": generation}
            answer = self._asked(self._api.put, self._url, passing=_CONFLICT, json=body)
            if answer.status_code != _CONFLICT:
                return True
        raise exception.PlacementError(f"provider {self._node}: somebody else is always faster")

    @property
    def _url(self) -> str:
        if self._uuid is None:
            found = self._asked(
                self._api.get, "/resource_providers", params={"name": self._node}
            ).json()
            providers = found.get("resource_providers") or []
            if len(providers) != 1:
                raise exception.PlacementError(
                    f"{len(providers)} resource providers are called {self._node}"
                )
            self._uuid = str(providers[0]["uuid"])
        return f"/resource_providers/{self._uuid}/traits"

    def _present(self) -> tuple[frozenset[str], int]:
        try:
            said = self._asked(self._api.get, self._url).json()
            return frozenset(said["traits"]), int(said["resource_provider_generation"])
        except exception.PlacementError:
            self._uuid = None  # deleted, or made anew under another UUID
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise exception.PlacementError(f"traits of {self._node}: {error!r}") from error

    def _asked(
        self, ask: Callable[..., Any], url: str, *, passing: int | None = None, **arguments: Any
    ) -> Any:
        try:
            answer = ask(url, microversion=MICROVERSION, raise_exc=False, **arguments)
        except _WRONG as error:
            raise exception.PlacementError(f"placement: {error}") from error
        if not answer.ok and answer.status_code != passing:
            raise exception.PlacementError(
                f"placement: {answer.status_code} for {url}: {str(answer.text)[:200]}"
            )
        return answer


class TraitKeeper:
    """A thread that keeps traits as they are said to be, and tries again where that fails."""

    def __init__(
        self, provider: Callable[[], ProviderTraits], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._changed = threading.Condition()
        self._wanted: frozenset[str] | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="provider-traits", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def say(self, traits: Mapping[str, bool]) -> None:
        """How it is now; returns at once."""
        wanted = frozenset(name for name, holds in traits.items() if holds)
        with self._changed:
            if wanted != self._wanted:
                self._wanted = wanted
                self._changed.notify_all()

    def stop(self) -> None:
        """End; a request under way is not waited for."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _run(self) -> None:
        kept: frozenset[str] | None = None
        provider: ProviderTraits | None = None
        pause, told = 0.0, ""
        while True:
            with self._changed:
                if self._wanted is None or self._wanted == kept or pause:
                    self._changed.wait(pause or CHECK_S)
                if self._ending:
                    return
                wanted = self._wanted
            if wanted is None:
                continue
            try:
                provider = provider or self._provider()
                if provider.keep(wanted):
                    LOG.info("Traits of this host: %s", ", ".join(sorted(wanted)) or "none")
                kept, pause, told = wanted, 0.0, ""
            except exception.EnlightenedError as error:
                kept, pause = None, RETRY_S
                if str(error) != told:
                    LOG.warning("Traits of this host are not kept: %s", error)
                told = str(error)
            except Exception:
                LOG.exception("Keeping traits")
                kept, pause = None, RETRY_S
