# SPDX-License-Identifier: Apache-2.0
import libvirt
import pytest


@pytest.fixture(autouse=True)
def no_error_of_another_test() -> None:
    """A libvirtError tells of the last error in this thread, whatever words it is made with."""
    libvirt.virResetLastError()
