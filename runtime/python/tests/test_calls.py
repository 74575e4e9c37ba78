"""Callbacks, cancels, failures and types."""

import pathlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import kiln as package
from kiln import (
    BudgetError,
    Cancelled,
    DeviceError,
    InputError,
    KilnError,
    Pipeline,
    devices,
    prepare,
)


def test_a_callback_gets_every_step(pipe: Pipeline) -> None:
    told: list[tuple[int, float]] = []

    def observe(own: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> None:
        assert own is pipe and values["steps"] == 3 and values["seconds"] > 0
        assert values["preview"].size == (256, 256)
        told.append((step, timestep))

    pipe("a cat", num_inference_steps=3, seed=0, preview=True, callback_on_step_end=observe)
    assert [step for step, _ in told] == [0, 1, 2]
    # Those of diffusers' DDIMScheduler with `steps_offset=1` and leading spacing.
    assert [timestep for _, timestep in told] == [667.0, 334.0, 1.0]


def test_a_callback_cancels_and_raises(pipe: Pipeline) -> None:
    def cancel(own: Pipeline, *_: Any) -> None:
        own.cancel()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Cancelled):
        pipe("a cat", num_inference_steps=9, callback_on_step_end=cancel)
    with pytest.raises(KeyboardInterrupt):
        pipe("a cat", num_inference_steps=9, callback_on_step_end=fail)
    pipe("a cat", num_inference_steps=1)


def test_another_thread_cancels(pipe: Pipeline) -> None:
    begun = threading.Event()

    def cancel() -> None:
        begun.wait()
        pipe.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    with pytest.raises(Cancelled):
        pipe("a cat", num_inference_steps=900, callback_on_step_end=lambda *_: begun.set())
    other.join()


def test_memory_is_counted_and_given_back(pipe: Pipeline) -> None:
    pipe("a cat", num_inference_steps=1)
    assert 0 < pipe.memory.device_bytes < pipe.memory.peak_bytes <= pipe.memory.budget_bytes
    pipe.trim()
    assert pipe.memory.device_bytes == 0
    assert pipe.model == "emoji-256" and pipe.sizes == [(256, 256)]


def test_failures_are_exceptions(bundle: pathlib.Path, pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="/no/such.kiln") as found:
        Pipeline("/no/such.kiln")
    assert found.value.status == 2 and isinstance(found.value, (KilnError, ValueError))
    with pytest.raises(DeviceError, match="no such device"):
        Pipeline(bundle, device="no such device")
    with pytest.raises(BudgetError, match="1048576 are allowed"):
        Pipeline(bundle, budget="1MiB")
    with pytest.raises(InputError, match="'1GiB'"):
        Pipeline(bundle, budget="much")
    with pytest.raises(InputError, match="compiled for 256x256"):
        pipe("a cat", height=512)
    for wrong in (
        {"sampler": "none"},
        {"num_inference_steps": 5000},
        {"strength": 2.0, "image": np.zeros((4, 4, 3))},
        {"mask_image": np.zeros((4, 4))},
        {"output_type": "latent"},
        {"seed": -2},
        {"latents": np.zeros(3)},
        {"num_images_per_prompt": 0},
    ):
        arguments: dict[str, Any] = dict(wrong)
        with pytest.raises(InputError):
            pipe("a cat", **arguments)


def test_a_closed_pipeline_says_so(bundle: pathlib.Path) -> None:
    compiled: list[tuple[int, int]] = []
    with Pipeline(bundle, progress=lambda done, of: compiled.append((done, of))) as own:
        assert compiled and compiled[-1][0] == compiled[-1][1]
    with pytest.raises(InputError, match="closed"):
        own("a cat")
    own.close()
    prepare(bundle)


def test_devices_have_names() -> None:
    assert devices() and all(devices())


def test_types_are_strict() -> None:
    folder = pathlib.Path(package.__file__).parent
    assert (folder / "py.typed").exists()
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir=/dev/null"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
