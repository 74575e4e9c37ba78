"""Reference tensors of steps that cost less, made with diffusers' modules.

usage: make_fast.py MODEL_DIR GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. Reads 0-init, 0-text, uncond-text and writes, of prompt 0 after 20 DDIM steps with
guidance 7.5:
  0-interval-latents-20   guidance in the first half of the steps, then the prompt's branch alone
  0-cached-latents-20     besides, one whole evaluation in three; the others keep the value that
                          enters the last block of the way up (DeepCache's branch 0). Guidance ends
                          with a whole evaluation
"""
import sys

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging

logging.set_verbosity_error()
MODEL, GOLDEN = sys.argv[1:3]
GUIDANCE, STEPS, STOP = 7.5, 20, 0.5

torch.set_grad_enabled(False)
unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").float().eval()
last, kept = unet.up_blocks[-1], {}


def keep(_, inputs):
    """What the last block of the way up reads beside the first convolution's output."""
    kept["deep"] = inputs[0][:, :-unet.conv_in.out_channels]


last.resnets[-1].register_forward_pre_hook(keep)


def load(name, *shape):
    return torch.from_numpy(np.load(f"{GOLDEN}/{name}.npy")).reshape(1, *shape)


def shallow(latents, t, context):
    """The first convolution, the last block, and the output."""
    time = unet.time_embedding(unet.time_proj(t.expand(len(latents))).to(latents.dtype))
    x = torch.cat([kept["deep"], unet.conv_in(latents)], dim=1)
    x = last.attentions[-1](last.resnets[-1](x, time), encoder_hidden_states=context).sample
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def denoise(interval):
    sampler = DDIMScheduler.from_pretrained(f"{MODEL}/scheduler")
    sampler.set_timesteps(STEPS)
    latents, before, left = load("0-init", 4, 32, 32) * sampler.init_noise_sigma, None, 0
    for step, t in enumerate(sampler.timesteps):
        guided = step < int(STOP * STEPS)
        rows = both if guided else both[1:]
        x = torch.cat([latents] * len(rows))
        if guided == before and left:
            output, left = shallow(x, t, rows), left - 1
        else:
            output, left = unet(x, t, rows).sample, interval - 1
        before = guided
        if guided:
            without, with_ = output.chunk(2)
            output = without + GUIDANCE * (with_ - without)
        latents = sampler.step(output, t, latents).prev_sample
    return latents


both = torch.cat([load("uncond-text", 77, 192), load("0-text", 77, 192)])
for name, interval in [("interval", 1), ("cached", 3)]:
    latents = denoise(interval)
    np.save(f"{GOLDEN}/0-{name}-latents-20.npy", latents[0].numpy())
    full = load("0-latents-20", 4, 32, 32)
    print(f"{name}: from the whole run by {float((latents - full).norm() / full.norm()):.3f}")
