"""The command, and the small model that ships, compiled as the tests of the command have it."""

import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kiln import Pipeline

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
KILN = TARGET / "release" / "kiln"

#: Runs the command with arguments.
Run = Callable[..., None]


@pytest.fixture(scope="session")
def kiln() -> Run:
    def run(*arguments: object) -> None:
        command = [str(KILN), *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="session")
def bundle(kiln: Run) -> pathlib.Path:
    path = TARGET / "tmp" / "python.kiln"
    tiny = ROOT / "models" / "emoji-256-tiny.safetensors"
    encoder = ["--with-encoder", "--tiny-decoder", tiny, "--no-prepare"]
    kiln("compile", "--model", "emoji-256", *encoder, "-o", path)
    kiln("prepare", path)
    return path


@pytest.fixture(scope="session")
def pipe(bundle: pathlib.Path) -> Iterator[Pipeline]:
    with Pipeline(bundle) as pipe:
        yield pipe


def pixels(picture: pathlib.Path | Image.Image) -> NDArray[np.uint8]:
    """The pixels of a picture, `[height, width, 3]`."""
    opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return np.asarray(opened.convert("RGB"))
