# SPDX-License-Identifier: Apache-2.0
"""The guest as Nova's monitor of a live migration sees it: patient where the migration is ours."""

import enum
from collections.abc import Callable
from typing import Any

import libvirt
from nova.virt.libvirt import guest as libvirt_guest


class Stage(enum.Enum):
    """How far an urgent migration is."""

    UNDER_WAY = enum.auto()
    MOVED = enum.auto()
    FAILED = enum.auto()
    LOST = enum.auto()
    """libvirt keeps the job of a VM whose destination is dead, for ever."""


_OPEN = (libvirt.VIR_DOMAIN_JOB_NONE, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)


class WatchedGuest:
    """Nova's guest, but for what it says of its migration.

    Nova takes an error of the question, such as while libvirtd restarts, for an end of the
    migration, and a domain that is gone for a completed one. Of an urgent migration it is told an
    end only when whoever carries it out knows of one.

    :param stage: asked each time; None for a migration that is left to Nova.
    """

    def __init__(self, guest: Any, stage: Callable[[], Stage | None]) -> None:
        self._guest = guest
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def get_job_info(self) -> Any:
        """As Nova's."""
        stage = self._stage()
        if stage is Stage.MOVED:
            return libvirt_guest.JobInfo(type=libvirt.VIR_DOMAIN_JOB_COMPLETED)
        if stage is Stage.LOST:
            return libvirt_guest.JobInfo(type=libvirt.VIR_DOMAIN_JOB_FAILED)
        if stage is not Stage.UNDER_WAY:
            return self._guest.get_job_info()
        try:
            info = self._guest.get_job_info()
        except libvirt.libvirtError:
            return libvirt_guest.JobInfo(type=libvirt.VIR_DOMAIN_JOB_NONE)
        if info.type in _OPEN:
            return info
        return libvirt_guest.JobInfo(type=libvirt.VIR_DOMAIN_JOB_NONE)
