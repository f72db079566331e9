# SPDX-License-Identifier: Apache-2.0
"""What has to be chosen before any test imports oslo.messaging: native threads, as in services."""

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)
