"""Reference tensors of the small model merged with its few-step LoRA, made with diffusers.

usage: make_turbo.py MODEL_DIR LORA GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. Reads 0-init and 0-text, and the embedding of the prompt alone, as guidance is 1. Writes:
  0-turbo-eps         output of the merged U-Net for 0-init at t = 999
  0-turbo-latents-K   after all of K = 1, 2 and 4 steps of LCM from 0-init, noise of generator seed 0
  0-turbo.png         the decoded picture of 4 steps
"""
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

MODEL, LORA, GOLDEN = sys.argv[1:4]
TIMESTEPS = {1: [999], 2: [999, 499], 4: [999, 749, 499, 249]}
torch.set_grad_enabled(False)
torch.set_num_threads(2)


def load(name, *shape):
    return torch.from_numpy(np.load(f"{GOLDEN}/{name}.npy")).reshape(1, *shape)


def save(name, tensor):
    np.save(f"{GOLDEN}/{name}.npy", np.ascontiguousarray(tensor[0].numpy()))


unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").float().eval()
lora = {name.removeprefix("unet."): value.float() for name, value in load_file(LORA).items()}
merged = set()
for name, weight in unet.state_dict().items():
    layer = name.removesuffix(".weight")
    if f"{layer}.lora_A.weight" in lora:
        down, up = lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"]
        weight += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        merged.add(layer)
print(len(merged), "layers of", len(lora) // 2)

init, context = load("0-init", 4, 32, 32), load("0-text", 77, 192)
save("0-turbo-eps", unet(init, 999, context).sample)
betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
for steps, timesteps in TIMESTEPS.items():
    sampler = LCMScheduler(**betas, clip_sample=False)
    sampler.set_timesteps(timesteps=timesteps)
    generator = torch.Generator().manual_seed(0)
    latents = init
    for t in sampler.timesteps:
        output = unet(latents, t, context).sample
        latents = sampler.step(output, t, latents, generator=generator).prev_sample
    save(f"0-turbo-latents-{steps}", latents)

vae = AutoencoderKL.from_pretrained(f"{MODEL}/vae").float().eval()
image = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)[0]
pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
Image.fromarray(pixels).save(f"{GOLDEN}/0-turbo.png", optimize=True)
