# SPDX-License-Identifier: Apache-2.0
"""The specification of a player."""

import pytest

from nova_enlightened import exception
from nova_enlightened.transfer.player_spec import PlayerSpec

DIGEST = "0" * 64


def spec(**options):
    return PlayerSpec(**{
        "run_directory": "/run/x", "store": "file:///s", "manifest": DIGEST,
        "qemu_socket": "/run/x/q", **options,
    })  # fmt: skip


def test_it_survives_its_file(tmp_path):
    made = spec(nbd_sockets={"vda": "/run/x/vda"}, record=True, cache_limit=5)
    made.save(tmp_path)
    assert PlayerSpec.from_json((tmp_path / "spec.json").read_text()) == made
    assert (tmp_path / "spec.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wrong",
    [
        {"manifest": "short"},
        {"plan": "X" * 64},
        {"connections": 0},
        {"connections": 1000},
        {"cache_limit": -1},
        {"bandwidth_limit": -1.0},
        {"qemu_socket": None},
    ],
)
def test_values_of_no_use_are_refused(wrong):
    with pytest.raises(exception.ConfigError):
        spec(**wrong)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_directory": "/", "what": 1}', "5"])
def test_what_is_no_specification_is_refused(text):
    with pytest.raises(exception.ConfigError):
        PlayerSpec.from_json(text)
