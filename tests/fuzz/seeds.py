# SPDX-License-Identifier: Apache-2.0
"""Where corpora begin: beginnings of recorded streams, and one small valid input of each kind."""

import json
import zlib
from collections.abc import Iterator

import numpy as np
import zstandard

from nova_enlightened.appliance import chunks, frames, prefetch, trace, unit_table
from nova_enlightened.knowledge import stored
from nova_enlightened.knowledge.snapshot import decode_snapshot
from nova_enlightened.plan.fault_trace import FaultRecorder
from nova_enlightened.stream import encode
from nova_enlightened.stream import nbd_wire as wire
from nova_enlightened.stream.events import Configuration, RamBlock
from nova_enlightened.stream.guest_channel import MessageType
from nova_enlightened.stream.guest_channel import encode as guest_frame
from nova_enlightened.stream.link_frames import encode_frame, encode_reason
from nova_enlightened.stream.link_state import FrameType
from nova_enlightened.transfer.player_spec import PlayerSpec
from nova_enlightened.transfer.spec import RelaySpec, TlsFiles
from tests.fuzz.targets.appliance import PLACES, STORED
from tests.fuzz.targets.link import KINDS, MIGRATION
from tests.unit.appliance import appliances
from tests.unit.knowledge.snapshots import Area, Process, Snapshot, bitmap
from tests.unit.stream.stored_streams import record, saved, whole
from tests.unit.stream.stream_vectors import vector, vector_names

BEGINNING = 900
"""Bytes of a recorded stream: past its header, configuration and list of blocks."""
CHANNELS = {"main": 0, "preempt": 2, "resumed": 3}


def migration() -> Iterator[bytes]:
    for name in vector_names(back=False):
        kind = name.rpartition(".")[2].partition("-")[0]
        yield bytes([CHANNELS.get(kind, 0)]) + vector(name)[:BEGINNING]
    block = RamBlock("pc.ram", 1 << 24, 4096)
    opening = encode.header() + encode.configuration(Configuration("pc", ("x-ignore-shared",)))
    shared = encode.ram_start(2) + encode.block_list(
        (block._replace(page_size=2 << 20), RamBlock("r", 1 << 16, 4096)),
        host_page_size=4096,
        addresses=(0, 1 << 32),
    )
    plain = encode.header() + encode.configuration(Configuration("pc", (), 12, bytes(16)))
    ram = encode.ram_start(2) + encode.block_list((block,), host_page_size=None)
    part = encode.ram_part(2) + encode.zero_page(0, "pc.ram") + encode.zero_page(4096)
    part += encode.page_header(8192) + bytes(4096) + encode.ram_end() + encode.footer(2)
    run = encode.ram_part(2) + encode.zero_page(0, "pc.ram")
    run += b"".join(encode.zero_page(n << 12) for n in range(100))
    package = encode.postcopy_package(b"device state")
    discard = encode.ram_discard("pc.ram", ((0, 8192), (1 << 20, 4096)))
    ended = encode.ram_end() + encode.footer(2)
    description = encode.eof() + encode.vm_description(b'{"page_size": 4096}')
    yield b"\0" + opening + encode.postcopy_advise(4096 | 2 << 20) + shared + ended
    yield b"\0" + plain + encode.postcopy_advise() + ram + ended + part + discard + package
    yield b"\0" + plain + ram + ended + run + encode.ram_end() + encode.footer(2) + description
    yield b"\3" + encode.recv_bitmap_request("pc.ram") + part + encode.ping(1)
    yield b"\2" + encode.page_header(0, "pc.ram") + bytes(4096) + encode.ram_end()


def return_path() -> Iterator[bytes]:
    for name in vector_names(back=True):
        yield vector(name)[:BEGINNING]
    for raw in (
        encode.shut(1), encode.pong(3), encode.request_pages(4096, 8192, "pc.ram"),
        encode.request_pages(0, 4096), encode.recv_bitmap("pc.ram", bytes(16)),
        encode.resume_ack(), encode.switchover_ack(),
    ):  # fmt: skip
        yield raw
        yield raw * 2


def link_frames() -> Iterator[bytes]:
    for known in (b"\0", b"\1"):
        for kind in FrameType:
            for payload in (b"", b"payload of it"):
                yield known + encode_frame(kind, 1, 7, payload)
        yield known + encode_frame(FrameType.DATA, 0, 0, b"x" * 99) * 2
        yield known + encode_reason(FrameType.BYE, "a\nb\0c")


def link_handshake() -> Iterator[bytes]:
    hello = {"min": 1, "max": 1, "migration": MIGRATION, "role": "source", "nonce": "00" * 32}
    challenge = {"version": 1, "nonce": "00" * 32}
    offer = {"instance": "i", "window": 1 << 20, "received": {"0": 1, "3": 0}}

    def said(kind: FrameType, body: object) -> bytes:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        return bytes([KINDS.index(kind)]) + len(payload).to_bytes(2, "big") + payload

    for signs in (0, 2):
        proved = said(FrameType.HELLO, hello) + said(FrameType.PROOF, offer)
        welcomed = said(FrameType.CHALLENGE, challenge) + said(FrameType.WELCOME, offer)
        yield bytes([signs | 1]) + proved
        yield bytes([signs]) + welcomed
        yield bytes([signs]) + said(FrameType.REFUSE, b"no such migration here")
        yield bytes([signs | 1]) + said(FrameType.HELLO, {**hello, "max": 9})


def link_session() -> Iterator[bytes]:
    opens = encode_frame(FrameType.OPEN, 0, 0) + encode_frame(FrameType.OPEN, 1, 0)
    data = encode_frame(FrameType.DATA, 0, 1, b"x" * 40)
    yield b"\1" + opens + data + encode_frame(FrameType.FIN, 0, 41)
    yield b"\1" + opens + data + encode_frame(FrameType.RESET, 0, 41)
    acks = encode_frame(FrameType.ACK, 0, 301) + encode_frame(FrameType.ACK, 1, 301)
    back = encode_frame(FrameType.DATA, 0, 0, b"y" * 40)
    yield b"\0" + acks + back + encode_frame(FrameType.FIN, 0, 40)
    for kind in (FrameType.PING, FrameType.PONG, FrameType.PACE):
        yield b"\0" + encode_frame(kind, 0, 5000)
    yield b"\0" + encode_reason(FrameType.BYE, "done")


def guest_channel() -> Iterator[bytes]:
    for kind in MessageType:
        yield b"\1" + guest_frame(kind, b'{"a": 1}', 7)
        yield b"\0" + guest_frame(kind, b'{"a": 1}', 7)
    yield b"\0" + guest_frame(MessageType.SNAPSHOT, b"s" * 99, 7, compress=True) * 2
    yield b"\3" + guest_frame(MessageType.SNAPSHOT, b"s" * 99, 7, compress=True)
    yield b"\1" + b"tail of another" + guest_frame(MessageType.PING, b"", 1)
    bomb = zlib.compress(bytes(1 << 20))
    yield b"\1" + guest_frame(MessageType.SNAPSHOT, bomb, 7)[:5] + b"\1" + bytes(14) + bomb[:900]


def guest_answers() -> Iterator[bytes]:
    hello = {
        "agent": "1.0", "protocol": 1, "kernel": "6.1", "frames": 4096,
        "sources": ["soft-dirty", "idle"], "source": "soft-dirty",
    }  # fmt: skip
    kinds = tuple(MessageType)
    for kind, body in (
        (MessageType.HELLO, hello), (MessageType.ARMED, {"interval_s": 1.0, "source": "idle"}),
        (MessageType.STATUS, {"samples": 3, "cpu": 0.25}), (MessageType.ERROR, {"error": "no\n"}),
    ):  # fmt: skip
        yield bytes([kinds.index(kind)]) + json.dumps(body).encode()
    for deep in (900, 980, 3000):
        nested = b'{"sources": [' + b"[" * deep + b"]" * deep + b"]}"
        yield bytes([kinds.index(MessageType.HELLO)]) + nested
    yield from (bytes([kinds.index(MessageType.SNAPSHOT)]) + each for each in snapshot())


def snapshot() -> Iterator[bytes]:
    evidence = bytes(range(64))
    area = Area((3, 5, 0, 9), bytes((0xC0, 0, 0, 0x40)), samples=3, read_share=40)
    yield Snapshot(evidence).encoded()
    yield Snapshot(evidence, (Process((area, Area((1, 2, 3)))),)).encoded()
    yield Snapshot(evidence, (Process((area, area)), Process((), 7, b"a"))).encoded()
    yield Snapshot(evidence, (), (bitmap(64, (1, 5)), bitmap(64, (2,)))).encoded()


def stored_knowledge() -> Iterator[bytes]:
    for each in snapshot():
        yield stored.dump(decode_snapshot(each))


def domain_xml() -> Iterator[bytes]:
    yield b"""<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><memory unit='GiB'>4\
</memory><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><qemu:commandline>\
<qemu:arg value='pc,max-ram-below-4g=2G'/></qemu:commandline></domain>"""
    yield b"""<domain><maxMemory unit='KiB'>16777216</maxMemory><memory>4194304</memory><os>\
<type machine='pc-q35-7.2'>hvm</type></os><cpu><numa><cell id='1' memory='1048576'/><cell id='0' \
memory='1' unit='GiB'/></numa></cpu><devices><memory model='dimm'><target><size unit='MiB'>1024\
</size></target><alias name='dimm0'/><address type='dimm' slot='0' base='0x100000000'/></memory>\
</devices></domain>"""
    digits = b"9" * 4400  # more than Python makes a number of
    yield (
        b"""<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><memory>4096</memory><os>\
<type machine='pc'/></os><q:arg value='max-ram-below-4g=%s'/></domain>"""
        % digits
    )
    yield b"<!DOCTYPE d [<!ENTITY a '1'><!ENTITY b '&a;&a;'>]><domain><memory>&b;</memory></domain>"


def relay_spec() -> Iterator[bytes]:
    yield b'{"tls": ' + b"[" * 3000
    layout = {
        "machine": "pc", "windows": [[0, 4096, 0]], "backends": [["pc.ram", 4096]],
        "whole": "pc.ram", "devices": [["memdimm0", 1048576, 16]],
    }  # fmt: skip
    tls = TlsFiles("/etc/ca.pem", "/etc/cert.pem", "/etc/key.pem", "host-b")
    for role, files in (("source", tls), ("destination", None)):
        run = f"/run/nova-enlightened/{MIGRATION}"
        yield RelaySpec(
            role=role, migration=MIGRATION, run_directory=run, socket=f"{run}/q.sock",
            link_host="192.0.2.7", link_port=49300, secret="ab" * 32, tls=files,
            layout=layout if files else None, knowledge="/k.npz" if files else None,
        ).to_json().encode()  # fmt: skip


def control_line() -> Iterator[bytes]:
    yield b'{"call": "status"}'
    yield b"[" * 3000
    yield b'{"call": "end", "reason": "told to"}'
    yield b'{"call": "end", "unknown": [1, 2.5, null]}'


def fault_trace() -> Iterator[bytes]:
    recorder = FaultRecorder(0.0)
    for page in range(3):
        recorder.fault(page, float(page), page)
    recorder.seen(np.array([1], np.int64), 4.0)
    for bandwidth in (None, 1e9):
        yield recorder.trace((("pc.ram", 1 << 24), ("r", 4096)), "heat", bandwidth).encode()


def nbd() -> Iterator[bytes]:
    def option(kind: wire.Option, body: bytes = b"") -> bytes:
        return wire.OPTION.pack(wire.OPTION_MAGIC, kind, len(body)) + body

    def request(kind: wire.Command, offset: int, length: int, flags: int = 0) -> bytes:
        return wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, 7, offset, length)

    name = (3).to_bytes(4, "big") + b"vda"
    context = name + (1).to_bytes(4, "big") + (15).to_bytes(4, "big") + b"base:allocation"
    flags = wire.CLIENT_FLAGS.pack(3)
    opening = flags + option(wire.Option.STRUCTURED_REPLY)
    opening += option(wire.Option.SET_META_CONTEXT, context)
    going = opening + option(wire.Option.GO, name + bytes(2))
    yield going + request(wire.Command.READ, 0, 512) + request(wire.Command.DISC, 0, 0)
    yield going + request(wire.Command.BLOCK_STATUS, 512, 4096, wire.CommandFlag.REQ_ONE)
    yield flags + option(wire.Option.EXPORT_NAME, b"vda") + request(wire.Command.READ, 9999, 1)
    yield flags + option(wire.Option.LIST) + option(wire.Option.ABORT)
    yield opening + option(wire.Option.INFO, name + b"\0\1\0\3")
    yield opening + option(wire.Option.LIST_META_CONTEXT, name + bytes(4))
    yield going + request(wire.Command.WRITE, 0, 4) + b"data" + request(wire.Command.TRIM, 0, 9)


def save_header() -> Iterator[bytes]:
    for compression in (0, 5):
        yield saved(b"", compression=compression)
        yield saved(b"", compression=compression, cookie="<cookie/>")


def stored_stream() -> Iterator[bytes]:
    zeros = [record("pc.ram", 0, None), *(record(None, number, None) for number in range(1, 64))]
    yield whole(zeros)
    yield whole([record("pc.ram", 3, bytes(4096))])
    yield whole([record("pc.rom", 1, None)], [record("pc.ram", 5, None)])


def manifest() -> Iterator[bytes]:
    yield appliances.manifest().to_bytes()
    yield appliances.manifest(parent="ef" * 32, unit_table=appliances.OBJECT).to_bytes()


def _both_ways(file: bytes, header: int, size: int) -> Iterator[bytes]:
    yield b"\0" + file
    yield b"\1" + file[:header] + frames.decompress(file[header:], size)


def chunk_index() -> Iterator[bytes]:
    for group in (1, 4):
        index = appliances.Stored(PLACES, {n: n % 9 for n in range(40)}, group=group).index
        file = chunks.encode(index)
        begin = chunks.HEADER.size + 4
        yield from _both_ways(file, begin, zstandard.frame_content_size(file[begin:]))


def table_of_units() -> Iterator[bytes]:
    file = STORED.table.encode()
    begin = unit_table.HEADER.size
    yield from _both_ways(file, begin, zstandard.frame_content_size(file[begin:]))


def prefetch_plan() -> Iterator[bytes]:
    plan = prefetch.PrefetchPlan(
        "ab" * 32, PLACES, 3, np.array([5, 9, 3], np.uint32), np.array([0, 7, 90], np.uint32),
        np.array([0, 2], np.uint32), 1000, appliances.OBJECT, (appliances.OBJECT,),
    )  # fmt: skip
    file = plan.encode()
    begin = prefetch.HEADER.size
    yield from _both_ways(file, begin, zstandard.frame_content_size(file[begin:]))


def player_spec() -> Iterator[bytes]:
    run = f"/run/nova-enlightened/appliance-{MIGRATION}"
    spec = PlayerSpec(run, "https://store/", "ab" * 32, "cd" * 32, f"{run}/q.sock")
    yield spec.to_json().encode()
    disks = {"vda": f"{run}/vda.sock"}
    yield PlayerSpec(run, "file:///srv", "ab" * 32, nbd_sockets=disks).to_json().encode()
    yield b'{"run_directory": ' + b"[" * 3000


def appliance_trace() -> Iterator[bytes]:
    recorder = trace.TraceRecorder("ab" * 32, PLACES, learning=True)
    recorder.touched([5, 9, 3], 1000)
    recorder.touched(range(20, 30), 5000)
    file = recorder.trace(10_000).encode()
    begin = trace.HEADER.size
    yield from _both_ways(file, begin, zstandard.frame_content_size(file[begin:]))


SEEDS = {
    function.__name__: function
    for function in (
        migration, return_path, link_frames, link_handshake, link_session, guest_channel,
        guest_answers, snapshot, stored_knowledge, domain_xml, relay_spec, control_line,
        fault_trace, nbd, save_header, stored_stream, manifest, chunk_index, table_of_units,
        prefetch_plan, player_spec, appliance_trace,
    )
}  # fmt: skip
"""Of each target that needs some, by its name."""
