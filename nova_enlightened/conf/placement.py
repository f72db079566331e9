# SPDX-License-Identifier: Apache-2.0
"""Options of the group ``[placement]``, the same that Nova reads: keystoneauth's own.

They are not in this project's sample: an agent reads them from Nova's files.
"""

from typing import Final

from keystoneauth1 import loading
from oslo_config import cfg

GROUP: Final = "placement"
SERVICE_TYPE: Final = "placement"
_VERSIONS: Final = ("version", "min_version", "max_version")


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register session, auth and adapter options on `conf`, with Nova's defaults."""
    loading.register_session_conf_options(conf, GROUP)
    loading.register_auth_conf_options(conf, GROUP)
    adapter = loading.get_adapter_conf_options(include_deprecated=False)
    cfg.set_defaults(adapter, valid_interfaces=["internal", "public"], service_type=SERVICE_TYPE)
    conf.register_opts([one for one in adapter if one.dest not in _VERSIONS], group=GROUP)
    # openstacksdk reads them. Which version of the API is asked for is not the operator's to say.
    conf.register_opts([cfg.StrOpt(name, advanced=True) for name in _VERSIONS], group=GROUP)
