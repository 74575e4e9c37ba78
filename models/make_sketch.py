"""A reference tensor of the small model with its style LoRA, made with diffusers.

usage: make_sketch.py MODEL_DIR LORA GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. diffusers and PEFT read the LoRA in Kohya's names. Reads 0-init and 0-text and writes:
  0-sketch-eps     output of the U-Net for 0-init at t = 999, at strength 0.8
"""
import os
import sys

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

MODEL, LORA, GOLDEN = sys.argv[1:4]
torch.set_grad_enabled(False)
torch.set_num_threads(1)


def load(name, *shape):
    return torch.from_numpy(np.load(f"{GOLDEN}/{name}.npy")).reshape(1, *shape)


unet = UNet2DConditionModel.from_pretrained(f"{MODEL}/unet").float().eval()
tensors, alphas = StableDiffusionPipeline.lora_state_dict(os.path.abspath(LORA), unet_config=unet.config)
unet.load_lora_adapter(tensors, network_alphas=alphas, prefix="unet", adapter_name="sketch")
unet.set_adapters(["sketch"], weights=[0.8])
init, context = load("0-init", 4, 32, 32), load("0-text", 77, 192)
eps = unet(init, 999, context).sample
unet.disable_adapters()
plain = unet(init, 999, context).sample
print("relative change", float((eps - plain).norm() / plain.norm()))
np.save(f"{GOLDEN}/0-sketch-eps.npy", np.ascontiguousarray(eps[0].numpy()))
