# SPDX-License-Identifier: Apache-2.0
"""Heat from histories of use."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.knowledge import heat

histories = st.integers(0, 255)


def of(history: int, samples: int, read_share: int = 0) -> int:
    """The heat of one page."""
    return int(heat.from_samples(np.array([history], dtype=np.uint8), samples, read_share, 1)[0])


def test_a_page_in_use_in_every_sample_is_as_hot_as_can_be() -> None:
    assert of(0b1000_0000, samples=1) == 255
    assert of(0b1110_0000, samples=3) == 255
    assert of(0b1111_1111, samples=8) == 255
    assert of(0b1111_1111, samples=200) == 255


def test_a_page_in_no_sample_is_cold() -> None:
    assert of(0, samples=8) == 0
    assert of(0b1111_1111, samples=0) == 0


def test_bits_older_than_the_samples_do_not_count() -> None:
    assert of(0b0111_1111, samples=1) == 0


def test_newer_use_is_hotter_than_older() -> None:
    once = [of(0x80 >> k, samples=8) for k in range(8)]

    assert once == sorted(once, reverse=True)
    assert len(set(once)) == 8


@settings(deadline=None)
@given(histories, st.integers(1, 8), st.integers(0, 7))
def test_one_more_use_never_cools_a_page(history: int, samples: int, bit: int) -> None:
    assert of(history | 1 << bit, samples) >= of(history, samples)


@settings(deadline=None)
@given(histories, st.integers(1, 255))
def test_any_sampled_use_is_hotter_than_the_kernels_mark(history: int, samples: int) -> None:
    warmth = of(history, samples)

    assert warmth == 0 or warmth >= heat.SAMPLED_MIN > heat.KERNEL_MARK


def test_the_share_that_was_read_warms_pages_that_were_not_written() -> None:
    assert of(0, samples=3, read_share=255) == 255
    assert heat.SAMPLED_MIN < of(0, samples=3, read_share=127) < 160
    assert of(0b1110_0000, samples=3, read_share=10) == 255


def test_without_a_history_only_reads_count() -> None:
    assert heat.from_samples(None, 3, 0, 4).tolist() == [0, 0, 0, 0]
    assert (heat.from_samples(None, 3, 255, 4) == 255).all()
