#!/usr/bin/env python3
"""Times one picture of SD-Turbo, from the start of a program to its PNG, in Kiln and in PyTorch.

  python tools/compare/turbo.py --budget 1GiB --pairs 3 [--precision fp32 fp16 int8] [--folder target/turbo]

One step, no guidance, 512x512, a tiny decoder. Values are from a seed (family.py). Kiln's kernels are
compiled before; weights are dropped from the system's cache before each run. PyTorch reads a diffusers
folder in FP32, runs transformers' text encoder, diffusers' U-Net, EulerDiscreteScheduler and
AutoencoderTiny, and is given tokens: it pays for no tokenizer. A line for each has the median seconds, the
processor's seconds, the peak of resident memory, and the median ratio of the pairs.
Packages: those of family.py, Pillow.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

PROMPT = "a lighthouse on a cliff"
TOKENS = [49406, 320, 10608, 525, 320, 12308] + [49407] * 71


def torch_picture(folder, dtype, output):
    """The whole of PyTorch's run."""
    import torch
    from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextModel

    torch.set_grad_enabled(False)
    dtype = getattr(torch, dtype)
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderTiny}
    text, unet, vae = (kind.from_pretrained(os.path.join(folder, name), torch_dtype=dtype).eval()
                       for name, kind in kinds.items())
    scheduler = EulerDiscreteScheduler.from_pretrained(os.path.join(folder, "scheduler"))
    scheduler.set_timesteps(1)
    context = text(torch.tensor([TOKENS])).last_hidden_state
    latent = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latent, t).to(dtype)
        latent = scheduler.step(unet(scaled, t, context).sample.float(), t, latent).prev_sample
    image = vae.decode(latent.to(dtype)).sample[0].float().clamp(-1, 1)
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(output)


def make_folder(folder):
    """The diffusers folder."""
    import family

    family.MODELS["sd-turbo"][2]["tiny"] = True
    family.write_folder(folder, "sd-turbo", family.modules("sd-turbo", "cpu"))


def itself(*words):
    """This script in a process of its own: a child's peak of memory counts from its parent's size."""
    return [sys.executable, os.path.abspath(__file__), *words]


def make(arguments):
    """The folder and the bundles."""
    folder = os.path.join(arguments.folder, "sd-turbo")
    if not os.path.exists(folder):
        subprocess.run(itself("--make", folder), check=True)
    for precision in arguments.precision:
        bundle = f"{folder}-{precision}.kiln"
        if not os.path.exists(bundle):
            command = [arguments.kiln, "compile", "--model", "sd-turbo", "--weights", folder, "--precision",
                       precision, "--budget", arguments.budget, "-o", bundle]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def drop(path):
    """Drops a file, or the files of a folder, from the system's cache."""
    files = [path]
    if os.path.isdir(path):
        files = [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command, weights):
    """Wall-clock seconds, processor seconds and peak MiB of a program that reads `weights`."""
    drop(weights)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(command)}\n{errors}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16", "int8"])
    parser.add_argument("--torch", nargs="+", default=["float32"], help="types of PyTorch's numbers")
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", default="target/turbo")
    parser.add_argument("--kiln", default="target/release/kiln")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return torch_picture(*arguments.one)
    if arguments.make:
        return make_folder(arguments.make)
    os.makedirs(arguments.folder, exist_ok=True)
    folder = make(arguments)
    runs = {}
    for dtype in arguments.torch:
        output = f"{folder}-{dtype}.png"
        runs[f"PyTorch {dtype}"] = (itself("--one", folder, dtype, output), folder)
    for precision in arguments.precision:
        bundle = f"{folder}-{precision}.kiln"
        command = [arguments.kiln, "run", bundle, "-p", PROMPT, "-o", f"{folder}-{precision}.png"]
        subprocess.run(command, check=True, capture_output=True)  # Compiles what is missing.
        runs[f"Kiln {precision} {arguments.budget}"] = (command, bundle)
    measured = {name: [] for name in runs}
    for _ in range(arguments.pairs):
        for name, run in runs.items():
            measured[name].append(timed(*run))
    print("                        seconds  processor  peak MiB  of PyTorch's time")
    first = next(iter(measured.values()))
    for name, values in measured.items():
        seconds, processor, peak = (statistics.median(column) for column in zip(*values))
        ratio = statistics.median(ours[0] / peer[0] for ours, peer in zip(values, first))
        print(f"{name:22} {seconds:8.1f} {processor:10.1f} {peak:9.0f} {ratio:8.2f}")


if __name__ == "__main__":
    main()
