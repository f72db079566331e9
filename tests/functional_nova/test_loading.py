# SPDX-License-Identifier: Apache-2.0
"""Where Nova finds the driver and the extra specs, and what a wheel puts beside Nova."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile
from unittest import mock

from nova import exception
from nova.api.validation.extra_specs import validators
from nova.tests.fixtures import libvirt as _libvirt  # noqa: F401  the driver has one
from nova.virt import driver
from nova.virt.libvirt import driver as libvirt_driver

from nova_enlightened.virt import loading

TOP = pathlib.Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
DRIVER = "enlightened.EnlightenedLibvirtDriver"


class TestDriver(unittest.TestCase):
    """As ``nova-enlightened-compute`` has it."""

    def test_nova_loads_it_by_name(self) -> None:
        loading.register()
        with mock.patch.object(libvirt_driver.LibvirtDriver, "__init__"):
            loaded = driver.load_compute_driver(None, DRIVER)
        self.assertIsInstance(loaded, libvirt_driver.LibvirtDriver)
        self.assertEqual("EnlightenedLibvirtDriver", type(loaded).__name__)

    def test_every_entry_point_that_needs_nova_loads(self) -> None:
        ours = [
            point
            for point in importlib.metadata.distribution("nova-enlightened").entry_points
            if point.group.startswith("nova.") or point.name == "nova-enlightened-compute"
        ]
        self.assertGreaterEqual(len(ours), 2)
        for point in ours:
            loaded = point.load()
            self.assertTrue(callable(getattr(loaded, "register", loaded)), point.name)

    def test_the_command_is_nova_compute(self) -> None:
        # Without a configuration that it could run with, help is what proves it.
        done = subprocess.run(
            [sys.executable, "-m", "nova_enlightened.cmd.compute", "--help"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true"},
        )
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("--config-file", done.stdout)


class TestExtraSpecs(unittest.TestCase):
    """What the API takes for a flavor."""

    def test_defined_values_are_taken(self) -> None:
        for name, value in (
            ("enlightened:post_copy", "allowed"),
            ("enlightened:post_copy", "forbidden"),
            ("enlightened:eviction", "never"),
            ("enlightened:priority", "100"),
        ):
            validators.validate(name, value)

    def test_others_are_refused(self) -> None:
        for name, value in (
            ("enlightened:post_copy", "yes"),
            ("enlightened:eviction", "Never"),
            ("enlightened:priority", "101"),
            ("enlightened:priority", "high"),
            ("enlightened:precopy", "allowed"),
        ):
            with self.assertRaises(exception.ValidationError, msg=f"{name}={value}"):
                validators.validate(name, value)


class TestWheel(unittest.TestCase):
    """What is installed beside Nova."""

    def test_it_brings_the_driver_into_novas_package_and_nothing_else(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            tree = pathlib.Path(directory, "tree")  # setuptools builds in the tree it is given
            shutil.copytree(TOP / "nova_enlightened", tree / "nova_enlightened")
            for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.rst", "LICENSE"):
                shutil.copy(TOP / name, tree)
            subprocess.run(
                [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", directory, str(tree)],
                check=True,
                env={**os.environ, "PBR_VERSION": "0.0.1"},
                timeout=120,
            )
            (wheel,) = pathlib.Path(directory).glob("*.whl")
            target = pathlib.Path(directory, "site-packages")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            inside = [str(path.relative_to(target)) for path in target.glob("nova/**/*.py")]
            self.assertEqual(["nova/virt/enlightened/__init__.py"], inside)
            self.assertTrue((target / "nova_enlightened/virt/driver.py").is_file())
            self.assertEqual(loading.SHIM.read_text(), (target / inside[0]).read_text())
