"""Writes family.txt.zst and family.safetensors: models of the family as diffusers builds them.

The text has, for each model, the configurations that diffusers would save and the names and shapes
of all tensors: the published models at full size (without values), and small models of the same
structures. The tensors are the outputs of the small models, whose weights and inputs follow from
their names (`values`). Run with torch, diffusers, transformers and safetensors, and the program zstd:

    python3 compiler/tests/data/make_family.py
"""

import json
import logging
import subprocess
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel

FOLDER = Path(__file__).parent
TOKENS, TIMESTEP, CLASS = 8, 501, 3


def blocks(down, up):
    """Types of blocks by whether they attend, as `x` or `-`, in execution order."""
    kind = lambda mark: "CrossAttn" if mark == "x" else ""
    return {
        "down_block_types": [f"{kind(m)}DownBlock2D" for m in down],
        "up_block_types": [f"{kind(m)}UpBlock2D" for m in up],
    }


NO_MIDDLE = {"mid_block_type": None}
SD15 = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    **blocks("xxx-", "-xxx"),
}
SD21 = {
    **SD15,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
THREE = {"block_out_channels": [320, 640, 1280], "layers_per_block": 1, **NO_MIDDLE}
VIT_L = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
             hidden_act="quick_gelu")
VIT_H = dict(hidden_size=1024, num_hidden_layers=23, num_attention_heads=16,
             intermediate_size=4096, hidden_act="gelu")
VAE = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
           sample_size=512)
PUBLISHED = {
    "sd21-base": (SD21, VIT_H, {}),
    "sd21": ({**SD21, "sample_size": 96}, VIT_H, {"prediction_type": "v_prediction"}),
    "sd21-inpaint": ({**SD21, "in_channels": 9}, VIT_H, {}),
    "sd15": (SD15, VIT_L, {}),
    "sd15-inpaint": ({**SD15, "in_channels": 9}, VIT_L, {}),
    "lcm-dreamshaper": ({**SD15, "time_cond_proj_dim": 256}, VIT_L, {}),
    "bk-sdm-small": ({**SD15, "layers_per_block": 1, **NO_MIDDLE}, VIT_L, {}),
    "bk-sdm-v2-tiny": (
        {**SD21, "attention_head_dim": [5, 10, 20], **THREE, **blocks("xxx", "xxx")}, VIT_H, {}),
    "sdxs-512": ({**SD15, **THREE, **blocks("-xx", "xx-")}, VIT_L, {}),
}

SMALL = {"sample_size": 8, "block_out_channels": [32, 64], "cross_attention_dim": 32,
         "attention_head_dim": 4, "layers_per_block": 1, **blocks("x-", "-x")}
SMALL_L = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
               hidden_act="quick_gelu", vocab_size=99, max_position_embeddings=TOKENS)
SMALL_H = {**SMALL_L, "hidden_act": "gelu"}
SMALL_VAE = {**VAE, "block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 16,
             "down_block_types": ["DownEncoderBlock2D"] * 2,
             "up_block_types": ["UpDecoderBlock2D"] * 2}
WIDE_VAE = {**SMALL_VAE, "block_out_channels": [32, 32, 96], "layers_per_block": 2,
            "scaling_factor": 0.08333, "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3}
SMALL_THREE = {"block_out_channels": [32, 64, 64], **NO_MIDDLE}
LINEAR = {"use_linear_projection": True}
MODELS = {
    "small-sd15": ({**SMALL, "layers_per_block": 2}, SMALL_L, SMALL_VAE),
    "small-sd21": ({**SMALL, **LINEAR, "attention_head_dim": [1, 2]}, SMALL_H, SMALL_VAE),
    "small-bk": ({**SMALL, **NO_MIDDLE}, SMALL_L, SMALL_VAE),
    "small-bk-tiny": (
        {**SMALL, **LINEAR, **SMALL_THREE, **blocks("xxx", "xxx"),
         "attention_head_dim": [1, 2, 2]}, SMALL_H, SMALL_VAE),
    "small-sdxs": ({**SMALL, **SMALL_THREE, **blocks("-xx", "xx-")}, SMALL_L, SMALL_VAE),
    "small-lcm": ({**SMALL, "time_cond_proj_dim": 16}, SMALL_L, SMALL_VAE),
    "small-inpaint": ({**SMALL, "in_channels": 9}, SMALL_L, SMALL_VAE),
    "small-upscaler": (
        {**SMALL, **LINEAR, "in_channels": 7, "num_class_embeds": 10,
         "only_cross_attention": [True, False], **blocks("xx", "xx")}, SMALL_H, WIDE_VAE),
}
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
}


def values(name, shape):
    """Values that follow from a name: splitmix64 from the name's FNV-1a hash on, uniform in a range
    that keeps activations at their size."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    unit = (x >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    if len(shape) > 1:
        unit *= np.sqrt(3 / np.prod(shape[1:])) if "input" not in name else 1.5
    else:
        unit = 1 + 0.2 * unit if name.endswith(".weight") else 0.1 * unit
    return unit.astype(np.float32).reshape(shape)


def fill(folder, module):
    state = {k: torch.from_numpy(values(f"{folder}/{k}", tuple(v.shape)))
             for k, v in module.state_dict().items() if not k.endswith("position_ids")}
    module.load_state_dict(state, strict=False)
    return module.eval()


def build(unet, text, vae):
    with torch.device("meta" if unet["sample_size"] > 8 else "cpu"):
        return {
            "unet": UNet2DConditionModel(**unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
            "vae": AutoencoderKL(**vae),
        }


def describe(name, parts, scheduler):
    lines = [f"model {name}"]
    for folder, part in parts.items():
        text = part.config.to_json_string() if folder == "text_encoder" else part.to_json_string()
        lines.append(f"config {folder} {json.dumps(json.loads(text), sort_keys=True)}")
    lines.append(f"config scheduler {json.dumps({**SCHEDULER, **scheduler})}")
    for folder, part in parts.items():
        for key, value in part.state_dict().items():
            if not key.endswith("position_ids"):
                shape = "x".join(str(d) for d in value.shape)
                lines.append(f"tensor {folder} {key} {shape}")
    return lines


def evaluate(parts):
    """The outputs of a small model, for a batch of two pictures of twice the width."""
    for folder, part in parts.items():
        fill(folder, part)
    unet, vae = parts["unet"], parts["vae"]
    given = lambda name, *shape: torch.from_numpy(values(f"input/{name}", shape))
    config = unet.config
    size = [config.sample_size, 2 * config.sample_size]
    latent = given("latent", 2, 4, *size)
    if config.in_channels > 4:
        latent = torch.cat([latent, given("condition", 2, config.in_channels - 4, *size)], 1)
    options = {}
    if config.time_cond_proj_dim:
        options["timestep_cond"] = given("guidance", 1, config.time_cond_proj_dim)
    if config.num_class_embeds:
        options["class_labels"] = torch.tensor([CLASS])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    image = given("image", 1, 3, *[s * factor for s in size])
    tokens = torch.tensor([[(7 * i + 5) % 99 for i in range(TOKENS)]])
    scale = vae.config.scaling_factor
    context = given("context", 2, TOKENS, config.cross_attention_dim)
    return {
        "text": parts["text_encoder"](tokens).last_hidden_state,
        "eps": unet(latent, TIMESTEP, context, **options).sample,
        "image": vae.decode(given("latent", 2, 4, *size)[:1] / scale).sample,
        "mean": vae.encode(image).latent_dist.mean * scale,
    }


def main():
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines, outputs = [], {}
    for name, (unet, text, scheduler) in PUBLISHED.items():
        lines += describe(name, build(unet, text, VAE), scheduler)
    for name, (unet, text, vae) in MODELS.items():
        parts = build(unet, text, vae)
        lines += describe(name, parts, {})
        with torch.no_grad():
            for what, value in evaluate(parts).items():
                outputs[f"{name}.{what}"] = value.numpy()
    text = "\n".join(lines) + "\n"
    packed = subprocess.run(["zstd", "-19"], input=text.encode(), capture_output=True, check=True)
    (FOLDER / "family.txt.zst").write_bytes(packed.stdout)
    save_file(outputs, FOLDER / "family.safetensors")


main()
