# SPDX-License-Identifier: Apache-2.0
"""What the agent samples of its host: plugins of ``nova_enlightened.collectors``."""
