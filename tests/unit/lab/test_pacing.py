# SPDX-License-Identifier: Apache-2.0
import socket
import threading
from pathlib import Path

import pytest

from lab import pacing
from lab.pacing import Turns


def test_turns_are_even_over_all_connections() -> None:
    turns = Turns(4, 1, 8.0)  # each connection twice a second
    waiting = {0, 1, 2, 3}
    assert turns.ready(waiting, 0.0) == [0]
    assert turns.next_in({1, 2, 3}, 0.0, 1.0) == pytest.approx(0.125)
    assert turns.ready(waiting, 0.25) == [0, 1, 2]


def test_what_fell_due_while_an_answer_was_awaited_is_not_asked() -> None:
    turns = Turns(1, 1, 10.0)
    turns.answered(0, 5.03)
    assert turns.ready({0}, 5.05) == []
    assert turns.ready({0}, 5.11) == [0]


def test_without_a_rate_everybody_may_ask_at_once() -> None:
    turns = Turns(2, 8, 0.0)
    turns.answered(0, 3.0)
    assert turns.ready({0, 1}, 3.0) == [0, 1]
    assert turns.next_in({0}, 3.0, 1.0) == 0.0


def test_nobody_waiting_waits_for_the_next_report() -> None:
    assert Turns(2, 1, 10.0).next_in(set(), 0.0, 0.02) == pytest.approx(0.02)


def test_a_connection_comes_about_as_soon_as_somebody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        made: list[socket.socket] = []
        thread = threading.Thread(
            target=lambda: made.append(pacing.connected("127.0.0.1", port, 30.0))
        )
        thread.start()
        reserved.listen()
        thread.join(30.0)
        with made[0] as connection:
            assert connection.getpeername() == ("127.0.0.1", port)


def test_patience_ends() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            pacing.connected("127.0.0.1", reserved.getsockname()[1], 0.15)


def test_a_word_that_is_there_is_not_waited_for(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.touch()
    pacing.wait_for_word(word)
