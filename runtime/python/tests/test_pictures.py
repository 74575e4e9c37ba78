"""Pictures of the package are those of the command."""

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, Run, pixels
from kiln import Pipeline

GOLDEN = ROOT / "models" / "emoji-256-golden"


def test_a_picture_equals_the_commands(
    pipe: Pipeline, kiln: Run, bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out.png"
    kiln("run", bundle, "-p", "a red heart", "--steps", 2, "--seed", 3, "-o", out)
    made = pipe("a red heart", num_inference_steps=2, seed=3)
    assert made.images[0].size == (256, 256) and made.seeds == [3] and made.warnings == []
    assert np.array_equal(pixels(made.images[0]), pixels(out))
    floats = pipe("a red heart", num_inference_steps=2, seed=3, output_type="np").images
    assert floats.shape == (1, 256, 256, 3) and floats.dtype == np.float32
    assert np.array_equal((floats[0] * 255).round(), pixels(out))


def test_every_setting_of_a_run_is_there(
    pipe: Pipeline, kiln: Run, bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out, latent = tmp_path / "out.png", tmp_path / "latent.npy"
    noise = np.random.default_rng(5).standard_normal((1, 4, 32, 32), np.float32)
    np.save(latent, noise)
    common = ["run", bundle, "-p", "a (red:1.3) heart", "-n", "blue", "--steps", 2, "-o", out]
    asked: dict[str, Any] = {"prompt": "a (red:1.3) heart", "negative_prompt": "blue", "num_inference_steps": 2}
    kiln(*common, "--guidance", 3, "--guidance-rescale", 0.5, "--eta", 0.7, "--latent", latent,
         "--spacing", "trailing", "--decoder", "tiny", "--plain-prompt")
    made = pipe(**asked, guidance_scale=3.0, guidance_rescale=0.5, eta=0.7, latents=noise, seed=0,
                spacing="trailing", decoder="tiny", plain_prompt=True)
    assert np.array_equal(pixels(made.images[0]), pixels(out))
    kiln(*common, "--sampler", "DPM++ 2M Karras", "--seed", 9)
    made = pipe(**asked, sampler="DPM++ 2M Karras", seed=9, height=256, width=256)
    assert np.array_equal(pixels(made.images[0]), pixels(out))


def test_a_picture_to_begin_with_and_its_mask(
    pipe: Pipeline, kiln: Run, bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out, init, mask = tmp_path / "out.png", GOLDEN / "1.png", GOLDEN / "1-mask.png"
    common = ["run", bundle, "-p", "a red heart", "--steps", 4, "--init-image", init, "-o", out]
    kiln(*common, "--strength", 0.5)
    asked: dict[str, Any] = {"prompt": "a red heart", "num_inference_steps": 4, "seed": 0}
    found = pipe(**asked, image=Image.open(init), strength=0.5).images[0]
    assert np.array_equal(pixels(found), pixels(out))
    kiln(*common, "--mask", mask)
    picture = np.asarray(Image.open(init).convert("RGB")) / 255.0
    found = pipe(**asked, image=picture, mask_image=Image.open(mask)).images[0]
    assert np.array_equal(pixels(found), pixels(out))


def test_seeds_count_up_and_a_generator_gives_one(pipe: Pipeline) -> None:
    class Seven:
        def initial_seed(self) -> int:
            return 7

    made = pipe(["a cat", "a dog"], num_inference_steps=1, generator=Seven())
    assert made.seeds == [7, 8] and len(made.images) == 2
    again = pipe("a dog", num_inference_steps=1, seed=8)
    assert np.array_equal(pixels(made.images[1]), pixels(again.images[0]))
    drawn = pipe("a cat", num_inference_steps=1, num_images_per_prompt=2).seeds
    assert drawn[1] == drawn[0] + 1 and drawn[0] < 2**32


def test_what_a_user_should_know_is_a_warning(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="77"):
        made = pipe("a very long story " * 40, num_inference_steps=1, seed=0)
    assert len(made.warnings) == 1


@pytest.mark.parametrize("name", ["out.jpg", "out.webp"])
def test_pillow_reads_the_commands_formats(
    pipe: Pipeline, kiln: Run, bundle: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    out = tmp_path / name
    kiln("run", bundle, "-p", "a café", "--steps", 1, "--quality", 95, "-o", out)
    expected = pixels(pipe("a café", num_inference_steps=1, seed=0).images[0]).astype(float)
    error = np.abs(pixels(out) - expected)
    assert error.mean() < (3 if name.endswith("jpg") else 1e-9), error.mean()
    comment = Image.open(out).getexif().get_ifd(0x8769)[0x9286]
    assert comment[8:].decode("utf-16-be").startswith("a café\nSteps: 1, Sampler: ")
