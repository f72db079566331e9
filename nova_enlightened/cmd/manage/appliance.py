# SPDX-License-Identifier: Apache-2.0
"""``appliance``: publish VMs, learn what they need first, and look after a store of them."""

import argparse
import contextlib
import dataclasses
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nova_enlightened import exception
from nova_enlightened.cmd.manage import output
from nova_enlightened.cmd.manage.context import Context, connect
from nova_enlightened.cmd.manage.output import Column
from nova_enlightened.cmd.manage.progress import bars
from nova_enlightened.conf import agent, streaming
from nova_enlightened.host import capture as captures
from nova_enlightened.host import learning, publishing, store_upkeep
from nova_enlightened.host.capture import Capture
from nova_enlightened.host.image_service import MANIFEST, PLAN, STORE, Image, ImageService
from nova_enlightened.transfer.player_appliance import read_manifest
from nova_enlightened.transfer.stores.writing import WritableStore, open_writable

DONE, WRONG = 0, 1


def publish(arguments: argparse.Namespace, context: Context) -> int:
    """Capture, upload, register."""
    with _store(arguments, context) as (url, store):
        parent = None
        if arguments.parent:
            parent = publishing.read_parent(store, arguments.parent)
        # What can be known to fail is found out before the server stops.
        publishing.reach(store)
        images = _images(context) if arguments.image else None
        if images is not None:
            images.reach()
        with _capture(arguments, context) as capture, bars(arguments.json) as progress:
            done = publishing.publish(
                capture, store, arguments.name, parent, progress, arguments.level
            )
    hosts_read = arguments.image_store or url
    image = None
    if images is not None:
        traces = arguments.traces == "yes"
        image = images.register(arguments.image, done.manifest, hosts_read, None, traces)
    _tell_published(arguments, done, capture, hosts_read, image)
    return DONE


def _tell_published(
    arguments: argparse.Namespace,
    done: publishing.Published,
    capture: Capture,
    store: str,
    image: Image | None,
) -> None:
    if arguments.json:
        output.document(
            {
                "manifest": done.digest,
                "store": store,
                "captured": capture.created,
                "stopped_seconds": capture.stopped_s,
                "bytes": done.places_bytes,
                "stored_bytes": done.stored_bytes,
                "new_bytes": done.new_bytes,
                "image": image.id if image is not None else None,
            }
        )
        return
    rows = [
        ("manifest", done.digest),
        ("size", f"{_mib(done.places_bytes)} of memory and disks"),
        ("stored", f"{_mib(done.stored_bytes)}, of them new {_mib(done.new_bytes)}"),
    ]
    if capture.stopped_s is not None:
        rows.append(("stopped", f"{capture.stopped_s:.2f} s"))
    if image is not None:
        rows.append(("image", f"{image.name} ({image.id})"))
    output.table((Column(""), Column("")), rows)
    if image is None:
        output.say(
            f"An image of it has the properties {STORE}={store} and {MANIFEST}={done.digest}; "
            "--image NAME registers one"
        )


@contextlib.contextmanager
def _capture(arguments: argparse.Namespace, context: Context) -> Iterator[Capture]:
    """The capture to publish. Its files go when the block ends well; after a failure they stay,
    and the same command goes on with them.
    """
    top = arguments.work_directory
    try:
        os.makedirs(top, exist_ok=True)
        if arguments.save:
            directory = tempfile.mkdtemp(prefix="saved-", dir=top)
        else:
            directory = os.path.join(top, arguments.server)
            captures.make_directory(directory)
    except OSError as error:
        raise exception.CaptureError(
            f"{top}: {error.strerror}. Run as root, or name another --work-directory"
        ) from error
    if arguments.save:
        # Made again of the same files the appliance is the same, so nothing of it need stay.
        try:
            yield _saved(arguments, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return
    yield _running(arguments, context, directory)
    shutil.rmtree(directory, ignore_errors=True)


def _saved(arguments: argparse.Namespace, directory: str) -> Capture:
    disks = dict(arguments.disk)
    if len(disks) != len(arguments.disk):
        raise exception.CaptureRefused("a disk is given twice")
    try:
        written = os.stat(arguments.save).st_mtime
    except OSError as error:
        raise exception.CaptureError(f"{arguments.save}: {error.strerror}") from error
    return captures.from_files(arguments.save, disks, directory, _iso(written), output.say)


def _running(arguments: argparse.Namespace, context: Context, directory: str) -> Capture:
    if arguments.disk:
        raise exception.CaptureRefused("--disk belongs to --save; a server's disks are known")
    found = captures.recorded(directory)
    if found is not None and not arguments.new:
        output.say(f"Going on with the capture of {found.created}; --new makes another")
        return found
    # Only here, as libvirt is on compute hosts only.
    from nova_enlightened.host import connection as libvirt_connection

    libvirt_connection.run_event_loop()
    uri = context.conf[agent.GROUP].libvirt_uri
    connection = libvirt_connection.Connection(uri)
    try:
        domain = connection.domain(arguments.server)
        capture = captures.DomainCapture(domain, directory, arguments.live, output.say)
        return capture.run(_iso(context.clock()))
    except exception.LibvirtError as error:
        raise exception.CaptureError(
            f"{error}. Run this on the server's host: openstack server show {arguments.server} "
            "-c OS-EXT-SRV-ATTR:host"
        ) from error
    finally:
        connection.close()


def learn(arguments: argparse.Namespace, context: Context) -> int:
    """Merge traces, store the plan, have images use it."""
    files = list(_trace_files(arguments.traces))
    with _store(arguments, context) as (_, store):
        images = _images(context) if arguments.image else None
        if arguments.share:
            mine = [path for path in files if learning.is_of(path, arguments.manifest)]
            for name in learning.share(store, arguments.manifest, mine):
                output.say(f"Shared: {name}")
        with bars(arguments.json) as progress:
            learned = learning.learn(
                store, arguments.manifest, files, progress, policy=arguments.policy
            )
    for line in learned.skipped:
        output.say(f"Skipped: {line}")
    updated = images.set_plan(arguments.manifest, learned.digest) if images is not None else []
    plan = learned.plan
    found = {
        "plan": learned.digest,
        "runs": plan.runs,
        "places": int(plan.order.size),
        "clusters": int(plan.cluster_starts.size),
        "layer_bytes": learned.layer_bytes,
        "images": [image.id for image in updated],
    }
    if arguments.json:
        output.document(found)
        return DONE
    rows = [
        ("plan", learned.digest),
        ("learned of", f"{plan.runs} runs"),
        ("prefetches", f"{_mib(int(plan.order.size) * 4096)}, stored {_mib(learned.layer_bytes)}"),
        *(("image", f"{image.name} ({image.id})") for image in updated),
    ]
    output.table((Column(""), Column("")), rows)
    if images is None:
        output.say(f"Images use it by the property {PLAN}={learned.digest}; --image sets it")
    elif not updated:
        output.say("Glance has no image of this appliance")
    return DONE


def _trace_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.trace"))
        else:
            yield path


def show(arguments: argparse.Namespace, context: Context) -> int:
    """One appliance."""
    with _store(arguments, context) as (_, store):
        manifest = read_manifest(store, arguments.manifest)
        plans = store_upkeep.plans(store, arguments.manifest)
        traces = store_upkeep.traces(store, arguments.manifest)
    memory = sum(size for _, size in manifest.ram_blocks)
    stored = sum(pack.length for pack in manifest.packs)
    found: dict[str, Any] = {
        "manifest": arguments.manifest,
        "name": manifest.name,
        "created": manifest.created,
        "machine": manifest.machine,
        "qemu_version": manifest.qemu_version,
        "memory_bytes": memory,
        "disks": dict(manifest.disks),
        "stored_bytes": stored,
        "packs": len(manifest.packs),
        "parent": manifest.parent,
        "plans": [store_upkeep.plan_digest(entry) for entry in plans],
        "traces": len(traces),
    }
    if arguments.json:
        output.document(found)
        return DONE
    rows = [
        *((key, str(found[key])) for key in ("manifest", "name", "created", "machine")),
        ("QEMU", manifest.qemu_version),
        ("memory", _mib(memory)),
        *((f"disk {target}", _mib(size)) for target, size in manifest.disks),
        ("stored", f"{_mib(stored)} in {len(manifest.packs)} packs"),
        ("parent", manifest.parent or output.NOTHING),
        ("traces", str(len(traces))),
        *(("plan", digest) for digest in found["plans"]),
    ]
    output.table((Column(""), Column("")), rows)
    return DONE


def appliances(arguments: argparse.Namespace, context: Context) -> int:
    """All appliances."""
    with _store(arguments, context) as (_, store):
        found = store_upkeep.appliances(store)
    if arguments.json:
        output.document([dataclasses.asdict(one) for one in found])
        return DONE
    columns = (Column("Name"), Column("Created"), Column("Manifest"))
    output.table(columns, [(one.name, one.created, one.digest) for one in found])
    return DONE


def verify(arguments: argparse.Namespace, context: Context) -> int:
    """Read all of one."""
    with _store(arguments, context) as (_, store), bars(arguments.json) as progress:
        wrong = [*store_upkeep.verify(store, arguments.manifest, arguments.plan, progress)]
    if arguments.json:
        output.document({"manifest": arguments.manifest, "wrong": wrong})
    else:
        for line in wrong:
            output.say(f"Wrong: {line}")
        output.say("Something is wrong: publish it again" if wrong else "All of it is right")
    return WRONG if wrong else DONE


def prune(arguments: argparse.Namespace, context: Context) -> int:
    """Delete what is not referred to."""
    before = context.clock() - arguments.older_than * 3600
    with _store(arguments, context) as (_, store):
        if not arguments.dry_run:
            for digest in arguments.remove:
                store_upkeep.unlist(store, digest)
        pruned = store_upkeep.prune(store, before, arguments.dry_run, frozenset(arguments.remove))
    if arguments.json:
        output.document({"deleted": [*pruned.objects], "bytes": pruned.size, "kept": pruned.kept})
        return DONE
    would = "Would delete" if arguments.dry_run else "Deleted"
    output.say(
        f"{would} {len(pruned.objects)} objects, {_mib(pruned.size)}; {pruned.kept} are kept"
    )
    return DONE


@contextlib.contextmanager
def _store(arguments: argparse.Namespace, context: Context) -> Iterator[tuple[str, WritableStore]]:
    url = arguments.store
    if not url:
        configured = context.conf[streaming.GROUP].stores
        if len(configured) != 1:
            raise exception.ConfigError(
                f"[{streaming.GROUP}] stores names {len(configured)} stores: choose one by --store"
            )
        url = configured[0]
    store = open_writable(url)
    try:
        yield url, store
    finally:
        store.close()


def _images(context: Context) -> ImageService:
    return ImageService(context.connect() if context.connect else connect(context.conf))


def _iso(moment: float) -> str:
    found = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return found.isoformat(timespec="seconds")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
