# SPDX-License-Identifier: Apache-2.0
"""Configuration options, registered on a configuration object that is passed in.

There is no global ``CONF`` here: Nova's services hand over theirs, the console commands make
their own, and a test makes one for each case.
"""

from collections.abc import Callable, Sequence

from oslo_config import cfg
from oslo_log import log

from nova_enlightened.conf import agent, enlightened, remediation, scheduler, streaming

GROUP = enlightened.GROUP

_MODULES = (enlightened, agent, scheduler, remediation, streaming)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register every option of this project on `conf`; again on the same object is harmless."""
    for module in _MODULES:
        module.register_opts(conf)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Options by group, for ``oslo-config-generator``."""
    return [entry for module in _MODULES for entry in module.list_opts()]


def check(conf: cfg.ConfigOpts) -> None:
    """Compare options with each other; each by itself is checked when it is read.

    :raises ConfigError: two options contradict each other; the message names both.
    """
    for module in _MODULES:
        module.check(conf)


def for_service(
    argv: Sequence[str], program: str, *register: Callable[[cfg.ConfigOpts], None]
) -> cfg.ConfigOpts:
    """The configuration of a service, from its command line; every value of it is checked.

    :param register: adds options of other projects.
    :raises ConfigError: two options contradict each other.
    :raises oslo_config.cfg.Error: a file cannot be read, or a value is not allowed.
    """
    conf = cfg.ConfigOpts()
    for add in (log.register_options, register_opts, *register):
        add(conf)
    conf(list(argv), project="nova_enlightened", prog=program)
    for group, options in list_opts():
        for option in options:  # a value is checked when it is read
            conf[group.name][option.dest]
    check(conf)
    return conf


def read(files: Sequence[str]) -> cfg.ConfigOpts:
    """A configuration from files, or from where oslo.config finds those of this project.

    :raises ConfigError: two options contradict each other.
    :raises oslo_config.cfg.Error: a file cannot be read, or a value is not allowed.
    """
    conf = cfg.ConfigOpts()
    register_opts(conf)
    conf([], project="nova_enlightened", default_config_files=list(files) or None)
    check(conf)
    return conf
