# SPDX-License-Identifier: Apache-2.0
"""CPU time that may be used: a share of one vCPU, some of it in advance."""


class Budget:
    """Keeps what is spent below `share` of the time that passes, and `ahead_s` of it.

    :param share: of one vCPU.
    :param ahead_s: what this many seconds allow may be used at once: the first samples after
        arming come quickly that way.
    """

    def __init__(self, share: float, ahead_s: float, now: float) -> None:
        self.share = share
        self.spent = 0.0
        self._ahead_s = ahead_s
        self._credit = share * ahead_s
        self._at = now

    def allow(self, share: float, now: float) -> None:
        """Another share from now on; what may be used in advance changes with it."""
        self._accrue(now)
        self._credit += (share - self.share) * self._ahead_s
        self.share = share

    def spend(self, seconds: float, now: float) -> None:
        """Note CPU time used."""
        self._accrue(now)
        self._credit -= seconds
        self.spent += seconds

    def wait(self, now: float) -> float:
        """Seconds until there is credit again; 0 while there is some."""
        self._accrue(now)
        return max(0.0, -self._credit / self.share)

    def _accrue(self, now: float) -> None:
        earned = (now - self._at) * self.share
        self._credit = min(self.share * self._ahead_s, self._credit + earned)
        self._at = now
