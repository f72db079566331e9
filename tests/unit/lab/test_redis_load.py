# SPDX-License-Identifier: Apache-2.0
import dataclasses
import zlib

import numpy as np

from lab.redis_load import Load, Requests, popularity, texts


def test_popularity_follows_zipf() -> None:
    drawn = popularity(1000, 0.99, 200_000, seed=3)
    counts = np.sort(np.bincount(drawn, minlength=1000))[::-1]
    weights = np.arange(1, 1001) ** -0.99
    expected = 200_000 * weights / weights.sum()
    np.testing.assert_allclose(counts[:5], expected[:5], rtol=0.05)


def test_popular_keys_are_scattered_over_the_data_set() -> None:
    drawn = popularity(10_000, 0.99, 100_000, seed=3)
    popular = np.argsort(np.bincount(drawn, minlength=10_000))[-100:]
    assert np.ptp(popular) > 8000


def test_a_batch_is_redis_protocol_and_knows_its_answer() -> None:
    load = dataclasses.replace(Load(), keys=10, value_bytes=4, pipeline=1, reads=1.0)
    words, answer = Requests(load).batch()
    assert words.startswith(b"*2\r\n$3\r\nGET\r\n$5\r\nkey:")
    assert answer == len(b"$4\r\nabcd\r\n")


def test_a_write_sends_a_whole_value() -> None:
    load = dataclasses.replace(Load(), keys=10, value_bytes=4, pipeline=2, reads=0.0)
    words, answer = Requests(load).batch()
    assert words.count(b"\r\n$4\r\n") == 2
    assert answer == 2 * len(b"+OK\r\n")


def test_two_inputs_share_what_is_popular_and_differ_in_their_draws() -> None:
    one, two = (popularity(10_000, 0.9, 50_000, seed, active=500) for seed in (1, 2))
    assert not np.array_equal(one, two)
    assert len(set(one.tolist()) & set(two.tolist())) > 450


def test_only_active_keys_are_asked_for_but_by_those_who_ask_anywhere() -> None:
    drawn = popularity(10_000, 0.9, 100_000, 1, active=500, anywhere=0.02)
    counts = np.bincount(drawn, minlength=10_000)
    strays = np.sort(counts)[:-500].sum()
    assert 0.015 < strays / 100_000 < 0.025


def test_texts_have_their_size_and_compress_as_text_does() -> None:
    values = list(texts(200, 2000, 1))
    assert {len(value) for value in values} == {2000}
    assert len(set(values)) == 200
    assert 0.25 < len(zlib.compress(b"".join(values))) / 400_000 < 0.7
