# SPDX-License-Identifier: Apache-2.0
"""What Nova finds as ``nova.virt.enlightened``: it loads drivers from its own package only.

A wheel ships this file as ``nova/virt/enlightened/__init__.py``; elsewhere ``loading`` puts it
there while the process runs.
"""

from nova_enlightened.virt.driver import EnlightenedLibvirtDriver

__all__ = ["EnlightenedLibvirtDriver"]
