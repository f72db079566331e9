# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova_enlightened.appliance.manifest import MAX_MANIFEST, Manifest, Object
from nova_enlightened.exception import ManifestError
from tests.unit.appliance.appliances import OBJECT, manifest

FILE = manifest(unit_table=OBJECT, parent="ef" * 32).to_bytes()


def refuses(data):
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


def changed(**fields):
    """The file with other JSON values, in canonical form."""
    return json.dumps(json.loads(FILE) | fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("fields", [{}, {"unit_table": OBJECT, "parent": "ef" * 32}, {"disks": ()}])
def test_reads_what_it_wrote(fields):
    written = manifest(**fields)
    assert Manifest.from_bytes(written.to_bytes()) == written


@given(
    st.text(
        min_size=1, max_size=40, alphabet=st.characters(exclude_characters="\0", codec="utf-8")
    ),
    st.binary(max_size=100),
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
)
def test_reads_whatever_it_wrote(text, configuration, blocks):
    written = manifest(
        name=text,
        vm_description=text,
        configuration=configuration,
        ram_blocks=tuple((f"ram{n}", pages * 4096) for n, pages in enumerate(blocks)),
        page_sizes=(4096,) * len(blocks),
    )
    assert Manifest.from_bytes(written.to_bytes()) == written


def test_its_digest_is_that_of_its_file():
    assert manifest().digest == hashlib.sha256(manifest().to_bytes()).hexdigest()


def test_knows_the_places_of_the_appliance():
    space = manifest().space()
    assert space.memory_pages == 258
    assert space.disk_range("vda") == range(258, 261)


@given(st.integers(0, len(FILE) - 1))
def test_a_truncated_file_is_refused(length):
    refuses(FILE[:length])


@settings(deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_the_digest(at, change):
    data = bytearray(FILE)
    data[at] ^= change
    try:
        read = Manifest.from_bytes(data)
    except ManifestError:
        return
    assert read.digest == hashlib.sha256(data).hexdigest() != hashlib.sha256(FILE).hexdigest()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"format":1}', b"{" * 100_000, b"[" * 100_000, b"\xff", FILE + b" ",
     FILE.replace(b'"created"', b'"created" '), b'{"format":2}', b'{"format":' + b"9" * 5000],
    ids=lambda data: repr(data[:12]),
)  # fmt: skip
def test_refuses_what_is_no_manifest(data):
    refuses(data)


def test_refuses_a_file_that_is_too_long():
    refuses(b" " * (MAX_MANIFEST + 1))


def test_refuses_a_key_that_comes_twice():
    refuses(FILE.replace(b'{"base_index"', b'{"base_index":["00",1],"base_index"'))


def test_the_file_for_these_tests_is_read_unless_it_is_changed():
    assert Manifest.from_bytes(changed()).parent == "ef" * 32


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": 1},
        {"name": ""},
        {"name": 7},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": "x" * 256},
        {"parent": "EF" * 32},
        {"parent": "ef" * 31},
        {"parent": 1},
        {"machine": None},
        {"domain_xml": "x" * ((1 << 20) + 1)},
        {"ram_blocks": []},
        {"ram_blocks": [["pc.ram", 1 << 20], ["pc.ram", 8192]]},
        {"ram_blocks": [["pc.ram", 4097], ["vga.vram", 8192]]},
        {"ram_blocks": [["pc.ram", True], ["vga.vram", 8192]]},
        {"ram_blocks": [["pc.ram", 1 << 62], ["vga.vram", 8192]]},
        {"ram_blocks": [["pc.ram"], ["vga.vram", 8192]]},
        {"ram_blocks": [["r" * 256, 4096], ["vga.vram", 8192]]},
        {"ram_blocks": {"pc.ram": 4096}},
        {"page_sizes": [4096]},
        {"page_sizes": [4096, 5000]},
        {"page_sizes": [4096, 1 << 31]},
        {"ram_section_id": -1},
        {"ram_section_id": 1 << 32},
        {"ram_section_id": 1.0},
        {"ram_setup_flags": 4096},
        {"configuration": "no base64!"},
        {"configuration": 5},
        {"device_state": None},
        {"device_state": [None, 5]},
        {"device_state": ["ab" * 32, 0]},
        {"device_state": ["ab" * 32, "5"]},
        {"device_state": ["../" + "ab" * 31, 5]},
        {"base_index": ["ab" * 32, 1 << 31]},
        {"unit_table": ["ab" * 32]},
        {"disks": [["vda", 0]]},
        {"disks": [["../etc", 4096]]},
        {"disks": [["vda", 4096], ["vda", 4096]]},
        {"disks": [["vda", 1 << 39]]},
        {"packs": [["ab" * 32, (64 << 20) + 1]]},
        {"packs": [["ab" * 32, 5], ["ab" * 32, 5]]},
        {"format": True},
    ],
    ids=str,
)
def test_refuses_a_value_that_cannot_be(fields):
    refuses(changed(**fields))


def test_a_publisher_cannot_make_one_that_could_not_be_read():
    with pytest.raises(ManifestError):
        manifest(packs=(Object("ab" * 32, 0),))
