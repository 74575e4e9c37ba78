"""webuiapi against the server: what scripts for AUTOMATIC1111's web UI do."""

import sys
import threading
import time
from urllib.parse import urlparse

import webuiapi
from PIL import Image

url, picture, _ = sys.argv[1:]
place = urlparse(url)
api = webuiapi.WebUIApi(host=place.hostname, port=place.port, sampler="LCM", steps=2)

models = api.util_get_model_names()
assert models == ["emoji", "turbo"], models
api.util_set_model("emoji")
assert api.util_get_current_model() == "emoji"
api.util_set_model("turbo")
assert "LCM" in api.util_get_sampler_names() and "karras" in api.util_get_scheduler_names()
for listed in (api.get_loras(), api.get_sd_vae(), api.get_upscalers(), api.get_prompt_styles()):
    assert listed == [], listed
assert api.get_cmd_flags()["api"] and api.get_memory()["ram"]["used"] > 0
assert api.get_options()["samples_format"] == "png"

made = api.txt2img(
    prompt="a red heart", negative_prompt="blurry", seed=5, width=256, height=256, cfg_scale=1,
    n_iter=2,
)
assert [image.size for image in made.images] == [(256, 256)] * 2
assert made.info["all_seeds"] == [5, 6], made.info
assert "Seed: 5" in made.info["infotexts"][0] and made.parameters["prompt"] == "a red heart"
assert made.image.getextrema() != ((0, 0), (0, 0), (0, 0)), "it is not black"

read = api.png_info(made.image)
assert read.info.startswith("a red heart\nNegative prompt: blurry\nSteps: 2,"), read.info

changed = api.img2img(
    images=[Image.open(picture)], prompt="a red heart", denoising_strength=0.5, seed=1,
    cfg_scale=1, width=256, height=256, steps=4,
)
assert changed.image.size == (256, 256)
assert "Denoising strength: 0.5" in changed.info["infotexts"][0]

try:
    api.txt2img(prompt="a", width=256, height=256, enable_hr=True)
    raise SystemExit("enable_hr was taken")
except RuntimeError as error:
    assert error.args[0] == 400 and "enable_hr is not supported" in error.args[1], error

# A long picture is interrupted from another thread, once its progress is seen.
long = {}
thread = threading.Thread(
    target=lambda: long.update(
        made=api.txt2img(
            prompt="a long picture", width=256, height=256, cfg_scale=1, steps=200,
            sampler_name="Euler",
        )
    )
)
thread.start()
other = webuiapi.WebUIApi(host=place.hostname, port=place.port)
while (progress := other.get_progress())["current_image"] is None:
    time.sleep(0.05)
assert progress["state"]["sampling_steps"] == 200, progress
assert 0 < progress["progress"] < 1 and progress["eta_relative"] > 0, progress
other.interrupt()
thread.join()
assert long["made"].images == [] and long["made"].info["interrupted"]
