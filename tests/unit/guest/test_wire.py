# SPDX-License-Identifier: Apache-2.0
"""The agent's compression; its frames are tested with the host's, in test_guest_channel."""

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.guest import wire


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=12))
def test_parts_packed_before_and_parts_that_are_not_make_one_stream(
    parts: list[tuple[bytes, bool]],
) -> None:
    given_parts = [wire.pack(raw) if packed else raw for raw, packed in parts]

    assert zlib.decompress(wire.compress(given_parts)) == b"".join(raw for raw, _ in parts)


def test_large_parts_make_one_stream() -> None:
    noise = bytes(range(256)) * 5000

    stream = wire.compress([bytes(1 << 20), wire.pack(noise), b"x", wire.pack(b""), noise])

    assert zlib.decompress(stream) == bytes(1 << 20) + noise + b"x" + noise
    assert len(stream) < 100_000


def test_a_packed_part_may_be_used_more_than_once() -> None:
    part = wire.pack(b"abc" * 100)

    assert zlib.decompress(wire.compress([part, part, part])) == b"abc" * 300
