#!/usr/bin/env python3
"""Compares the networks of the named models, at full size, with diffusers' and transformers'.

  python tools/compare/family.py [MODEL]... [--precision fp32 fp16 int8] [--torch cuda] [--folder target/family]

For each model the script makes a diffusers folder of its architecture, with values from a seed. PyTorch
evaluates the text encoder, a pass of the U-Net and the decoder. Kiln compiles the folder for the OpenCL
device at hand and evaluates the same. A line for each precision has the relative L2 errors. A folder and a
bundle take up to 12 GB and are deleted. Packages: torch, diffusers, transformers, numpy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SEED = 0
TOKENS = 77
# Largest relative L2 error of a network by precision.
LIMITS = {"fp32": 1e-4, "fp16": 8e-3, "int8": 5e-2}

DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
          "num_hidden_layers": 23, "hidden_act": "gelu", "projection_dim": 512}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
          "num_hidden_layers": 12, "hidden_act": "quick_gelu", "projection_dim": 768}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
             "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1,
             "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon"}


def small(levels, **more):
    """A U-Net with one residual block a level and no middle block."""
    return {"layers_per_block": 1, "mid_block_type": None, "block_out_channels": [320, 640, 1280, 1280][:levels],
            **more}


# U-Net, text encoder, and what else differs, from public descriptions of the models. Their own
# config.json files are not read.
MODELS = {
    "sd15": (SD1, CLIP_L, {}),
    "sd15-inpaint": ({**SD1, "in_channels": 9}, CLIP_L, {}),
    "lcm-dreamshaper": ({**SD1, "time_cond_proj_dim": 256}, CLIP_L, {}),
    "bk-sdm-small": (small(4, **SD1), CLIP_L, {}),
    "sd21-base": (SD2, CLIP_H, {}),
    "sd21": ({**SD2, "sample_size": 96}, CLIP_H, {"prediction_type": "v_prediction"}),
    "sd-turbo": (SD2, CLIP_H, {"timestep_spacing": "trailing"}),
    "sd21-inpaint": ({**SD2, "in_channels": 9}, CLIP_H, {}),
    "bk-sdm-v2-tiny": (
        small(3, **{**SD2, "attention_head_dim": [5, 10, 20]}, down_block_types=DOWN[:3],
              up_block_types=UP[1:]), CLIP_H, {}),
    "sdxs-512": (
        small(3, **SD1, down_block_types=["DownBlock2D"] + DOWN[:2], up_block_types=UP[1:3] + ["UpBlock2D"]),
        CLIP_L, {"tiny": True}),
}


def filled(module, device, generator):
    """A module made on the meta device, with values that keep activations near unit variance."""
    module = module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel() if "embedding" not in name else 1
            parameter.data.normal_(0, fan_in ** -0.5, generator=generator)
        else:
            is_scale = "norm" in name and name.endswith("weight")
            parameter.data.normal_(1.0 if is_scale else 0.0, 0.1, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return module.eval().requires_grad_(False)


def modules(name, device):
    """Text encoder, U-Net and autoencoder of a model."""
    unet, text, more = MODELS[name]
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**text))
        unet = UNet2DConditionModel(**{"sample_size": 64, **unet})
        if more.get("tiny"):
            vae = AutoencoderTiny()
        else:
            vae = AutoencoderKL(
                block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4,
                sample_size=512, scaling_factor=0.18215)
    return [filled(module, device, generator) for module in (text, unet, vae)]


def write_folder(folder, name, networks):
    """Writes a diffusers folder."""
    for part, module in zip(("text_encoder", "unet", "vae"), networks):
        module.save_pretrained(os.path.join(folder, part))
    os.makedirs(os.path.join(folder, "scheduler"))
    more = {key: value for key, value in MODELS[name][2].items() if key != "tiny"}
    with open(os.path.join(folder, "scheduler", "scheduler_config.json"), "w") as file:
        json.dump({**SCHEDULER, **more}, file)
    with open(os.path.join(folder, "model_index.json"), "w") as file:
        json.dump({"_class_name": "StableDiffusionPipeline"}, file)


def inputs_of(name, networks, device):
    """The inputs of each network by name."""
    text, unet, vae = networks
    generator = torch.Generator(device).manual_seed(SEED + 1)
    side = unet.config.sample_size

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)

    tokens = torch.randint(0, 49000, (1, TOKENS), generator=generator, device=device)
    tokens[0, 0], tokens[0, 12:] = 49406, 49407
    of_unet = {"latent": normal(1, 4, side, side), "timestep": torch.tensor([501.0], device=device),
               "context": normal(1, TOKENS, unet.config.cross_attention_dim)}
    if unet.config.in_channels > 4:
        of_unet["condition"] = normal(1, unet.config.in_channels - 4, side, side)
    if unet.config.time_cond_proj_dim:
        of_unet["guidance_embedding"] = normal(1, unet.config.time_cond_proj_dim)
    latent = normal(1, 4, side, side) * 0.5
    decoder = "tiny_decoder" if MODELS[name][2].get("tiny") else "decoder"
    return {"text_encoder": {"tokens": tokens}, "unet": of_unet, decoder: {"latent": latent}}


@torch.no_grad()
def expected_of(networks, inputs):
    """What diffusers and transformers compute."""
    text, unet, vae = networks
    of_unet = inputs["unet"]
    latent = of_unet["latent"]
    if "condition" in of_unet:
        latent = torch.cat([latent, of_unet["condition"]], 1)
    eps = unet(latent, of_unet["timestep"], of_unet["context"],
               timestep_cond=of_unet.get("guidance_embedding")).sample
    decoder = "decoder" if "decoder" in inputs else "tiny_decoder"
    latent = inputs[decoder]["latent"] / vae.config.scaling_factor
    return {"text_encoder": text(inputs["text_encoder"]["tokens"]).last_hidden_state, "unet": eps,
            decoder: vae.decode(latent).sample}


def write_npy(path, tensor):
    dtype = numpy.float32 if tensor.is_floating_point() else numpy.int32
    numpy.save(path, tensor.cpu().numpy().astype(dtype))


def kiln(arguments, *words):
    command = [arguments.kiln, *words, "--device", arguments.device]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compare(arguments, name):
    """Prints a line for each precision of a model. Returns whether all errors are within limits."""
    folder = os.path.join(arguments.folder, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    networks = modules(name, arguments.torch)
    inputs = inputs_of(name, networks, arguments.torch)
    expected = {network: value.cpu() for network, value in expected_of(networks, inputs).items()}
    write_folder(folder, name, networks)
    del networks
    bundle = folder + ".kiln"
    right = True
    for precision in arguments.precision:
        kiln(arguments, "compile", "--model", name, "--weights", folder, "--precision", precision,
             "--budget", arguments.budget, "-o", bundle)
        errors = []
        for network, tensors in inputs.items():
            words = []
            for port, tensor in tensors.items():
                path = os.path.join(folder, f"{port}.npy")
                write_npy(path, tensor)
                words += ["--input", f"{port}={path}"]
            output = os.path.join(folder, "output.npy")
            kiln(arguments, "eval", bundle, "--network", network, *words, "--output", output)
            found = torch.from_numpy(numpy.load(output)).double()
            want = expected[network].double()
            errors.append(float((found - want).norm() / want.norm()))
        within = all(error <= LIMITS[precision] for error in errors)
        right &= within
        words = " ".join(f"{error:9.1e}" for error in errors)
        print(f"{name:16} {precision:5} {words}  {'within' if within else 'OVER'} {LIMITS[precision]:.0e}",
              flush=True)
    shutil.rmtree(folder)
    os.remove(bundle)
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--precision", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--torch", default="cpu", help="device of the reference")
    parser.add_argument("--device", default="auto", help="OpenCL device of Kiln")
    parser.add_argument("--folder", default="target/family")
    parser.add_argument("--kiln", default="target/release/kiln")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"{'model':16} {'':5} {'text':>9} {'U-Net':>9} {'decoder':>9}  relative L2 error")
    right = True
    for name in arguments.models:
        try:
            right &= compare(arguments, name)
        except subprocess.CalledProcessError as error:
            print(f"{name:16} {error.stderr.strip()}", flush=True)
            right = False
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
