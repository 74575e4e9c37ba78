"""Further reference tensors of the small model, made with diffusers.

usage: make_golden.py MODEL_DIR GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. Reads 0-init, 0-text, uncond-text, 1-image and writes:
  0-SAMPLER-latents-20   prompt 0 from 0-init after 20 steps, guidance 7.5, generator seed 0
  1-mean                 the encoder's mean of 1-image, times the scaling factor
  0-img2img-latents-15   prompt 0 from 1.png (rounded 1-image), strength 0.75 of 20 DDIM steps
and prints the least-squares projection from latents to colours for previews.
"""
import glob
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       UNet2DConditionModel)
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

logging.set_verbosity_error()
MODEL, GOLDEN = sys.argv[1:3]
GUIDANCE, STEPS, SEED = 7.5, 20, 0
SAMPLERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler,
            "euler-a": EulerAncestralDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler}


def load(name, *shape):
    return torch.from_numpy(np.load(f"{GOLDEN}/{name}.npy")).reshape(1, *shape)


def save(name, tensor):
    np.save(f"{GOLDEN}/{name}.npy", np.ascontiguousarray(tensor[0].numpy()))


def denoise(sampler, latents, timesteps, generator):
    takes_noise = isinstance(sampler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler))
    extra = {"generator": generator} if takes_noise else {}
    for t in timesteps:
        x = sampler.scale_model_input(latents, t)
        without, with_ = unet(torch.cat([x, x]), t, context).sample.chunk(2)
        output = without + GUIDANCE * (with_ - without)
        latents = sampler.step(output, t, latents, **extra).prev_sample
    return latents


torch.set_grad_enabled(False)
unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").float().eval()
vae = AutoencoderKL.from_pretrained(f"{MODEL}/vae")
# The encoder is a file of its own.
encoder = load_file(f"{MODEL}/vae/encoder.safetensors")
vae.load_state_dict(encoder, strict=False, assign=True)
vae = vae.float().eval()
config = DDIMScheduler.from_pretrained(f"{MODEL}/scheduler").config
factor = vae.config.scaling_factor
init = load("0-init", 4, 32, 32)
context = torch.cat([load("uncond-text", 77, 192), load("0-text", 77, 192)])

for name, kind in SAMPLERS.items():
    sampler = kind.from_config(config)
    sampler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(SEED)
    latents = denoise(sampler, init * sampler.init_noise_sigma, sampler.timesteps, generator)
    if name == "ddim":
        known = load("0-latents-20", 4, 32, 32)
        print("ddim against 0-latents-20:", float((latents - known).norm() / known.norm()))
    else:
        save(f"0-{name}-latents-20", latents)

image = load("1-image", 3, 256, 256)
save("1-mean", vae.encode(image).latent_dist.mode() * factor)

pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy()
Image.fromarray(pixels).save(f"{GOLDEN}/1.png")
picture = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
sampler = DDIMScheduler.from_config(config)
sampler.set_timesteps(STEPS)
timesteps = sampler.timesteps[STEPS - int(STEPS * 0.75):]
latents = vae.encode(picture).latent_dist.mode() * factor
noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
latents = sampler.add_noise(latents, noise, timesteps[:1])
save("0-img2img-latents-15", denoise(sampler, latents, timesteps, None))

rows, colours = [], []
for path in sorted(glob.glob(f"{GOLDEN}/?-image.npy")):
    picture = torch.from_numpy(np.load(path)).reshape(1, 3, 256, 256).clamp(-1, 1)
    small = torch.nn.functional.avg_pool2d(picture, 8)
    for shade in (1.0, -1.0):  # Inverted, too, so that white grounds do not outweigh the rest.
        latents = vae.encode(picture * shade).latent_dist.mode() * factor
        rows.append(latents[0].flatten(1).T)
        colours.append((small * shade)[0].flatten(1).T)
rows, colours = torch.cat(rows), torch.cat(colours)
rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
fit = torch.linalg.lstsq(rows.double(), colours.double()).solution
print("latent channels and bias to RGB:\n", fit.numpy().round(4))
print("rms error:", float((rows.double() @ fit - colours).square().mean().sqrt()))
