"""OpenAI's client against the server."""

import base64
import io
import sys

import openai
from PIL import Image

url, picture, _ = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none is needed", max_retries=0)

names = [model.id for model in client.models.list()]
assert names == ["turbo", "emoji"], names
assert client.models.retrieve("turbo").id == "turbo"


def images(answer):
    return [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in answer.data]


few = {"steps": 2, "sampler": "lcm", "guidance": 1, "seed": 7}
made = images(
    client.images.generate(model="turbo", prompt="a crown", n=2, size="256x256", extra_body=few)
)
assert [image.size for image in made] == [(256, 256)] * 2
assert made[0].text["prompt"] == "a crown" and [image.text["seed"] for image in made] == ["7", "8"]
assert made[0].tobytes() != made[1].tobytes()

with open(picture, "rb") as file:
    edited = images(
        client.images.edit(
            model="turbo", image=file, prompt="a crown", extra_body={**few, "strength": 0.5}
        )
    )
assert edited[0].size == (256, 256) and edited[0].text["strength"] == "0.5"

# A transparent part of the mask is repainted, the rest is kept.
original = Image.open(picture).convert("RGB")
mask = Image.new("RGBA", original.size, (10, 20, 30, 255))
mask.paste((0, 0, 0, 0), (0, 0, 128, 256))
file = io.BytesIO()
mask.save(file, "PNG")
with open(picture, "rb") as image:
    repainted = images(
        client.images.edit(
            model="turbo", image=image, mask=("mask.png", file.getvalue()), prompt="a crown",
            extra_body=few,
        )
    )[0]
half = (128, 0, 256, 256)
assert repainted.crop(half).tobytes() == original.crop(half).tobytes()
assert repainted.crop((0, 0, 128, 256)).tobytes() != original.crop((0, 0, 128, 256)).tobytes()

for wrong, kind in [
    ({"model": "dall-e-3", "prompt": "a"}, openai.NotFoundError),
    ({"model": "turbo", "prompt": "a", "size": "1024x1024"}, openai.BadRequestError),
    ({"model": "turbo", "prompt": "a", "response_format": "url"}, openai.BadRequestError),
]:
    try:
        client.images.generate(**wrong)
        raise SystemExit(f"{wrong} was taken")
    except kind as error:
        assert error.body["message"], error
