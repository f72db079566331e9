# SPDX-License-Identifier: Apache-2.0
"""All metadata is in setup.cfg; pbr adds the version and the requirements."""

import pathlib

import setuptools
from setuptools.command.build_py import build_py

SHIM = pathlib.Path("nova_enlightened/virt/shim.py")
BESIDE_NOVA = pathlib.Path("nova/virt/enlightened/__init__.py")


class BuildWithShim(build_py):
    """Ships the module that Nova imports, inside Nova's own package.

    It is no package of ours in setuptools' eyes: an editable install would have to make an empty
    ``nova`` for it where there is no Nova, and does not need it (virt/loading.py).
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / BESIDE_NOVA
            self.mkpath(str(target.parent))
            self.copy_file(str(SHIM), str(target))

    def get_outputs(self, include_bytecode=True):
        shim = [] if self.editable_mode else [str(pathlib.Path(self.build_lib) / BESIDE_NOVA)]
        return [*super().get_outputs(include_bytecode), *shim]


class Distribution(setuptools.Distribution):
    """Takes the command above, which pbr would replace if it were given as ``cmdclass``."""

    def get_command_class(self, command):
        if command == "build_py":
            return BuildWithShim
        return super().get_command_class(command)


setuptools.setup(setup_requires=["pbr>=6.1.1"], pbr=True, distclass=Distribution)
