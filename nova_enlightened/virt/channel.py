# SPDX-License-Identifier: Apache-2.0
"""The guest channel as a device of the domain that Nova defines."""

from typing import Any

from nova.virt.libvirt import config as vconfig

from nova_enlightened.stream.guest_channel import PORT_NAME


class GuestChannel(vconfig.LibvirtConfigGuestChannel):  # type: ignore[misc]
    """The virtio-serial port of the agent in the guest, on a unix socket that QEMU listens on.

    Its path is left out, so libvirt makes one of the domain's name and id, puts it into the XML
    of the running domain, and drops it again from what migrates: the destination makes its own.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.type = "unix"
        self.target_name = PORT_NAME

    def format_dom(self) -> Any:
        """The element, with a source that says no path."""
        self.source_path = ""
        element = super().format_dom()
        del element.find("source").attrib["path"]
        return element
