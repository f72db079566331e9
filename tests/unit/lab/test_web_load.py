# SPDX-License-Identifier: Apache-2.0
import pytest

from lab.web_load import Reading, Requests, answer_length

HEAD = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\n\r\n"


def test_an_answer_is_as_long_as_its_head_says() -> None:
    assert answer_length(HEAD + b"he") == len(HEAD) + 5


def test_half_a_head_is_waited_for() -> None:
    assert answer_length(HEAD[:-2]) is None


def test_an_error_of_the_application_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        answer_length(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n")


def test_an_answer_without_a_length_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        answer_length(b"HTTP/1.1 200 OK\r\n\r\n")


def test_two_readers_ask_differently_for_the_same_popular_articles() -> None:
    first, second = (Requests(Reading(seed=seed, anywhere=0.0)) for seed in (1, 2))
    asked = [[requests.request().split(b" ")[1] for _ in range(3000)] for requests in
             (first, second)]  # fmt: skip
    assert asked[0] != asked[1]
    assert len(set(asked[0]) & set(asked[1])) > 0.8 * len(set(asked[0]))
