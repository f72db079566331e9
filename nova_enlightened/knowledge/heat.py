# SPDX-License-Identifier: Apache-2.0
"""Heat: how likely a page is touched soon, from the samples in which it was used.

0 is "not seen in use". `KERNEL_MARK` is what the kernel's own ACTIVE/REFERENCED flags are
worth: they say "not long ago", minutes often, so any page that a sample saw is hotter.
From `SAMPLED_MIN` up it is the share of samples in which the page was used, newer samples
counting for more; 255 is "used in every sample".
"""

from typing import Final

import numpy as np
import numpy.typing as npt

KERNEL_MARK: Final = 16
SAMPLED_MIN: Final = 32
HISTORY: Final = 8
"""Samples a history byte holds; the oldest bit stands for all samples before it too."""
DECAY: Final = 0.8
"""Weight of a sample against the next newer one: what only the oldest saw in use is worth more than
what none saw."""


def _table() -> npt.NDArray[np.uint8]:
    """[samples][history byte] -> heat, for 0 to 8 samples."""
    table = np.zeros((HISTORY + 1, 256), dtype=np.uint8)
    history = np.arange(256)
    weights = DECAY ** np.arange(HISTORY)
    for samples in range(1, HISTORY + 1):
        used = sum(weights[k] * ((history >> (HISTORY - 1 - k)) & 1) for k in range(samples))
        share = used / weights[:samples].sum()
        table[samples] = np.where(share > 0, np.round(SAMPLED_MIN + share * (255 - SAMPLED_MIN)), 0)
    return table


_HEAT: Final = _table()


def from_samples(
    history: npt.NDArray[np.uint8] | None, samples: int, read_share: int, pages: int
) -> npt.NDArray[np.uint8]:
    """Heat of the pages of one area.

    :param history: shape (pages,), bit 7 = written in the newest sample; None = no page was.
    :param samples: samples the area was watched for; more than 8 counts as 8.
    :param read_share: 0-255, how likely a page not written was read between samples.
    :returns: shape (pages,), uint8.
    """
    if history is None:
        written = np.zeros(pages, dtype=np.uint8)
    else:
        written = _HEAT[min(samples, HISTORY)][history]
    if read_share:
        read = round(SAMPLED_MIN + read_share / 255 * (255 - SAMPLED_MIN))
        np.maximum(written, np.uint8(read), out=written)
    return written
