"""Reference tensors of repainting by blended latents, made with diffusers' inpainting pipeline.

usage: make_inpaint.py MODEL_DIR GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. Reads 0-text, uncond-text and 1.png and writes:
  1-mask.png             a disc with a soft edge at no multiple of the latent's pixels
  0-inpaint-latents-K    prompt 0 in the disc of 1.png: the last K steps of 8 by SAMPLER, see RUNS,
                         guidance 7.5, noise of seed 0; the encoder's mean in place of a sample
"""
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler,
                       StableDiffusionInpaintPipeline, UNet2DConditionModel)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

logging.set_verbosity_error()
MODEL, GOLDEN = sys.argv[1:3]
STEPS = 8
# Sampler, strength and steps that run. At strength 1, nothing of the hidden part is left.
RUNS = [(DDIMScheduler, 0.5, 4), (EulerDiscreteScheduler, 1.0, 8)]

torch.set_grad_enabled(False)
DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").float().eval()
vae = AutoencoderKL.from_pretrained(f"{MODEL}/vae")
encoder = load_file(f"{MODEL}/vae/encoder.safetensors")
vae.load_state_dict(encoder, strict=False, assign=True)
vae = vae.float().eval()

y, x = np.mgrid[:256, :256]
distance = np.hypot(y - 99.5, x - 131.5)
soft = np.clip((70 - distance) / 8 + 0.5, 0, 1) * 255
mask = Image.fromarray(soft.round().astype(np.uint8))
mask.save(f"{GOLDEN}/1-mask.png")


def embedding(name):
    return torch.from_numpy(np.load(f"{GOLDEN}/{name}.npy")).reshape(1, 77, 192)


for kind, strength, count in RUNS:
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None,
        scheduler=kind.from_config(DDIMScheduler.from_pretrained(f"{MODEL}/scheduler").config),
        feature_extractor=None, requires_safety_checker=False)
    latents = pipeline(
        prompt_embeds=embedding("0-text"), negative_prompt_embeds=embedding("uncond-text"),
        image=Image.open(f"{GOLDEN}/1.png"), mask_image=mask, height=256, width=256,
        strength=strength, num_inference_steps=STEPS, guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0), output_type="latent").images
    np.save(f"{GOLDEN}/0-inpaint-latents-{count}.npy", latents[0].numpy())
