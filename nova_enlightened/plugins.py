# SPDX-License-Identifier: Apache-2.0
"""The plugin that an operator has named, of those installed under a stevedore namespace."""

from typing import Any

from stevedore import driver
from stevedore import exception as stevedore_errors

from nova_enlightened import exception


def load(namespace: str, name: str, wrong: str) -> Any:
    """What the entry point `name` refers to: a class, mostly. The caller knows which.

    :param wrong: what to say where nothing of that name is installed, naming the option.
    :raises ConfigError: that.
    """
    try:
        found: Any = driver.DriverManager(namespace, name)
    except stevedore_errors.NoMatches as error:
        raise exception.ConfigError(wrong) from error
    return found.driver
