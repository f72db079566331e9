# SPDX-License-Identifier: Apache-2.0
"""Side-by-side measurements: every figure in the documentation comes from here."""

from oslo_service import backend

# oslo.messaging takes the kind of threads as it is chosen when it is imported.
backend.init_backend(backend.BackendType.THREADING)
