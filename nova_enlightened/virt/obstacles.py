# SPDX-License-Identifier: Apache-2.0
"""What in a running domain keeps it from post-copy, read from its XML.

Post-copy needs every page of the guest to be one that the kernel can fetch on a fault: private,
anonymous memory of the base page size. Devices that pin memory or share it with another process
touch pages that have not arrived, past the kernel's sight.
"""

from typing import Final

from nova_enlightened.knowledge import domain_xml

# What is looked for (a path below <domain>), and what it means. In the order of the answer.
_ELEMENTS: Final = (
    ("devices/hostdev", "a device of the host is passed through"),
    ("devices/interface[@type='hostdev']", "an SR-IOV port is passed through"),
    ("devices/interface[@type='vdpa']", "a vDPA port reads the guest's memory"),
    ("devices/interface[@type='vhostuser']", "a vhost-user port shares the guest's memory"),
    ("devices/disk[@type='vhostuser']", "a vhost-user disk shares the guest's memory"),
    ("devices/disk[@type='vhostvdpa']", "a vDPA disk reads the guest's memory"),
    ("devices/filesystem", "a file system of the host is shared with it"),
    ("devices/memory[@model='nvdimm']", "it has persistent memory"),
    ("devices/memory[@model='virtio-pmem']", "it has persistent memory"),
    ("memoryBacking/hugepages", "its memory is huge pages"),
    ("memoryBacking/access[@mode='shared']", "its memory is shared"),
    ("cpu/numa/cell[@memAccess='shared']", "its memory is shared"),
    ("launchSecurity", "its memory is encrypted"),
)


def find(xml: str) -> str | None:
    """Why this domain cannot leave by post-copy, in words; None where nothing is in the way.

    :param xml: of the running domain.
    :raises HintError: not the XML of a domain.
    """
    domain = domain_xml.root(xml)
    for path, words in _ELEMENTS:
        if domain.find(path) is not None:
            return words
    source = domain.find("memoryBacking/source")
    if source is not None and source.get("type") != "anonymous":
        return f"its memory is of type {source.get('type')}"
    return None
