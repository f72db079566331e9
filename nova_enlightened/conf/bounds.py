# SPDX-License-Identifier: Apache-2.0
"""Options that must not pass each other."""

from collections.abc import Iterable

from oslo_config import cfg

from nova_enlightened import exception


def check(conf: cfg.ConfigOpts, group: str, pairs: Iterable[tuple[str, str]]) -> None:
    """:raises ConfigError: the first option of a pair is above the second; names both."""
    for low, high in pairs:
        least, most = conf[group][low], conf[group][high]
        if least > most:
            raise exception.ConfigError(f"[{group}] {low} = {least} is above {high} = {most}")
