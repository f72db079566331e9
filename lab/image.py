# SPDX-License-Identifier: Apache-2.0
"""The guest's disk, kernel and initial RAM disk, built from Debian packages and cached.

Two parts, each under a name made from what went into it:

* the *base*: a Debian system as one read-only ext4 file, and its kernel (about a minute, once);
* the *initial RAM disk*: kernel modules, the guest programs and the agent (a second, again
  whenever one of them changes). It lays a RAM overlay on the base; see ``guest/init.sh``.
"""

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.processes import run
from nova_enlightened.guest.pack import packed

RELEASE = "bookworm"
#: What guest/init.sh says on the console of a guest booted only to see whether that works.
ALIVE = "lab: a guest runs here"
PACKAGES = (
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "nginx-light",
    "python3",
    "python3-waitress",
    "qemu-guest-agent",
    "redis-server",
    "systemd-sysv",
    "udev",
)
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "overlay",
)
PROGRAMS = ("hotpages", "checksum", "heartbeat", "fragment", "session")
SCRIPTS = ("workload.sh", "webapp.py", "nginx.conf")
#: Units that a guest which lives a minute does not need; each costs a second or so under TCG.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "logrotate.timer",
    "modprobe@.service",
    "nginx.service",
    "proc-sys-fs-binfmt_misc.automount",
    "redis-server.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-network-generator.service",
    "systemd-pcrphase-initrd.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-repart.service",
    "systemd-sysctl.service",
    "systemd-sysext.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service",
    "systemd-udev-trigger.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
)
REMOVED = (
    "boot",
    "usr/lib/systemd/system-environment-generators",
    "usr/lib/systemd/system-generators",
    "usr/lib/udev/hwdb.bin",
    "usr/lib/udev/hwdb.d",
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)

_KEPT_S = 3 * 86400

Progress = Callable[[str], None]
_HERE = Path(__file__).resolve().parent / "guest"
_AGENT = Path(__file__).resolve().parent.parent / "nova_enlightened" / "guest"


@dataclass(frozen=True)
class GuestImage:
    """Paths of what a guest boots from. ``root`` is raw ext4, never written."""

    kernel: Path
    initrd: Path
    root: Path


def build(cache: Path, progress: Progress) -> GuestImage:
    """The image, built where it is not in ``cache`` yet; one builder at a time.

    Raises LabError or CommandFailed where a package, a program or a tool is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "image.lock"):
        base = _base(cache, progress)
        initrd = _initrd(cache, base, progress)
        for used in (base, initrd):
            os.utime(used)
        return GuestImage(base / "vmlinuz", initrd, base / "root.ext4")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A new directory that becomes ``target`` only when the block succeeds."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _base(cache: Path, progress: Progress) -> Path:
    target = cache / f"guest-{_digest(RELEASE, PACKAGES, MASKED, REMOVED, 1)}"
    if target.exists():
        return target
    progress(f"Building the guest's disk from Debian {RELEASE} packages (once, about a minute)")
    with _made_whole(target) as work:
        root = work / "root"
        debian_root(root, RELEASE, PACKAGES)
        kernel = next((root / "boot").glob("vmlinuz-*"))
        shutil.copyfile(kernel, work / "vmlinuz")
        version = kernel.name.removeprefix("vmlinuz-")
        _copy_modules(root, version, work / "modules")
        _trim(root, version)
        _make_ext4(root, work / "root.ext4")
        shutil.rmtree(root)
    return target


def debian_root(root: Path, release: str, packages: tuple[str, ...]) -> None:
    """Make a small Debian system at ``root``: ``packages`` of ``release``, nothing recommended."""
    excluded = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
    # mmdebstrap mounts /proc, /sys and /dev below root. In namespaces of its own, so that neither
    # its mounts nor its processes outlive it, however it ends, and root can be removed safely.
    alone = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", "--")  # fmt: skip
    run(
        [
            *alone,
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={path}" for path in excluded),
            release,
            str(root),
            *_mirror(),
        ],
        timeout=900,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": str(root.parent)},
    )


def _mirror() -> list[str]:
    """Where this machine gets Debian from: ``LAB_MIRROR``, or the first of its own sources.

    Empty where it has none: then mmdebstrap knows one.
    """
    if "LAB_MIRROR" in os.environ:
        return [os.environ["LAB_MIRROR"]]
    wanted = ["--format", "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    shown = run(["apt-get", "indextargets", *wanted], check=False).stdout
    for line in shown.splitlines():
        before, found, uri = line.partition("Debian Debian main ")
        if found and not before and uri.startswith("http"):
            return [uri.strip()]
    return []


def _copy_modules(root: Path, version: str, target: Path) -> None:
    """The modules the first program loads, decompressed, with their order in ``list``."""
    target.mkdir()
    names: list[str] = []
    for module in MODULES:
        shown = run(["chroot", str(root), "modprobe", "--show-depends", "-S", version, module])
        for line in shown.stdout.splitlines():
            word, _, path = line.strip().partition(" ")
            if word != "insmod":
                continue
            source = root / path.strip().lstrip("/")
            if source.name in names:
                continue
            shutil.copyfile(source, target / source.name)
            names.append(source.name)
    (target / "list").write_text("\n".join(names) + "\n")


def _trim(root: Path, version: str) -> None:
    for path in (*REMOVED, f"usr/lib/modules/{version}/kernel/drivers"):
        at = root / path
        if at.is_dir():
            shutil.rmtree(at)
            at.mkdir()
        else:
            at.unlink(missing_ok=True)
    units = root / "etc/systemd/system"
    shutil.rmtree(units)
    units.mkdir()
    for name in MASKED:
        (units / name).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/lab.target")
    (root / "etc/machine-id").write_text("0" * 31 + "1\n")
    (root / "etc/fstab").write_text("")
    # No journal: what units write is on the console, and so in a file of the host.
    (root / "etc/systemd/system.conf").write_text(
        "[Manager]\nDefaultStandardOutput=tty\nDefaultStandardError=tty\n"
    )


def _make_ext4(root: Path, image: Path) -> None:
    used = int(run(["du", "-s", "--block-size=1M", str(root)]).stdout.split()[0])
    with image.open("wb") as file:
        file.truncate((used + used // 6 + 48) << 20)
    run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^metadata_csum", "-d", str(root),
         str(image)])  # fmt: skip


def _initrd(cache: Path, base: Path, progress: Progress) -> Path:
    sources = sorted(p for p in _HERE.iterdir() if p.is_file())
    agent = _agent_files()
    content = [(str(name), program) for name, program in agent]
    content += [(path.name, path.read_bytes()) for path in sources]
    target = cache / f"initrd-{_digest(base.name, content, 1)}.gz"
    if target.exists():
        return target
    progress("Packing the guest programs")
    with tempfile.TemporaryDirectory(prefix=".initrd.", dir=cache) as work:
        tree = Path(work) / "tree"
        _fill_initrd(tree, base, agent)
        names = sorted(str(p.relative_to(tree)) for p in tree.rglob("*"))
        archive = Path(work) / "archive"
        run(["sh", "-c", f"cpio --quiet -o -H newc -R 0:0 -F {archive}"],
            stdin="\n".join(names) + "\n", cwd=tree)  # fmt: skip
        compressed = Path(work) / "compressed"
        compressed.write_bytes(gzip.compress(archive.read_bytes(), 1, mtime=0))
        compressed.rename(target)
    _forget_old(cache)
    return target


def _forget_old(cache: Path) -> None:
    """Remove images that nothing has booted from for days."""
    limit = time.time() - _KEPT_S
    for path in (*cache.glob("initrd-*.gz"), *cache.glob("guest-*")):
        if path.stat().st_mtime < limit:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fill_initrd(tree: Path, base: Path, agent: list[tuple[Path, bytes]]) -> None:
    for name in ("bin", "dev", "proc", "sys", "lab/files/etc/systemd/system/lab.target.wants"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LabError("busybox is missing: install the package busybox-static")
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(_HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    names = (base / "modules/list").read_text().split()
    for name in names:
        shutil.copyfile(base / "modules" / name, tree / "lab" / name)
    (tree / "lab/modules").write_text(" ".join(names))
    files = tree / "lab/files"
    programs = files / "usr/lib/lab"
    programs.mkdir(parents=True)
    for program in PROGRAMS:
        run(["gcc", "-O2", "-static", "-s", "-o", str(programs / program),
             str(_HERE / f"{program}.c")])  # fmt: skip
    for script in SCRIPTS:
        shutil.copy(_HERE / script, programs)
    units = files / "etc/systemd/system"
    shutil.copy(_HERE / "lab.target", units)
    wanted = ["lab-channels.service", "lab-workload.service"]
    for name in wanted:
        shutil.copy(_HERE / name, units)
    for place, content in agent:
        at = files / place
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)
    for name in wanted:
        (units / "lab.target.wants" / name).symlink_to(f"/etc/systemd/system/{name}")


def _agent_files() -> list[tuple[Path, bytes]]:
    """Where each file of the agent goes in the guest, and what is in it.

    The unit says where it wants the program (the path ending in .pyz of ExecStart).
    """
    found: list[tuple[Path, bytes]] = []
    for unit in sorted(_AGENT.glob("*.service")):
        found.append((Path("etc/systemd/system") / unit.name, unit.read_bytes()))
        wanted = re.search(r"^ExecStart=.*?(/\S+\.pyz)(?:\s|$)", unit.read_text(), re.MULTILINE)
        if wanted:
            found.append((Path(wanted.group(1).lstrip("/")), packed()))
    for rules in sorted(_AGENT.glob("*.rules")):
        found.append((Path("etc/udev/rules.d") / rules.name, rules.read_bytes()))
    return found
