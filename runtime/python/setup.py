"""Puts the runtime's library and its C header into the wheel, which is for one platform.

The library is `$KILN_LIBRARY`, else cargo builds it from the sources around this folder.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.bdist_wheel import bdist_wheel

RUNTIME = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = "libkiln_runtime.so"


def library() -> pathlib.Path:
    """The library to ship."""
    given = os.environ.get("KILN_LIBRARY")
    if given:
        path = pathlib.Path(given)
        if not path.is_file():
            sys.exit(f"KILN_LIBRARY names {path}, and there is no such file")
        return path
    if not (RUNTIME / "Cargo.toml").is_file():
        sys.exit("build the package in a clone of the repository, or set KILN_LIBRARY")
    cargo = shutil.which("cargo") or sys.exit("the library needs Rust: install it by rustup")
    subprocess.run(
        [cargo, "build", "--release", "--locked", "-p", "kiln-runtime"], cwd=RUNTIME, check=True
    )
    target = os.environ.get("CARGO_TARGET_DIR") or RUNTIME.parent / "target"
    return pathlib.Path(target) / "release" / LIBRARY


class BuildWithLibrary(build_py):
    """Copies the library and the header beside the modules."""

    def run(self) -> None:
        super().run()
        package = pathlib.Path(self.build_lib) / "kiln"
        package.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library(), package / LIBRARY)
        shutil.copyfile(RUNTIME / "include" / "kiln.h", package / "kiln.h")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class PlatformDistribution(Distribution):
    """Says that the wheel has code of the machine."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
    distclass=PlatformDistribution,
)
