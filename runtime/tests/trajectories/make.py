"""Last latents of diffusers' schedulers on a small network, for runtime/tests/sampler.rs.

usage: make.py > trajectories.tsv

The network is a function of its input and the timestep: 0.6 x + 0.4 sin(0.1 t + 2 x + i / 2) for
element i. The initial latents are torch.randn of seed 1, the fresh noise is that of seed 0, in FP32.
Columns: sampler, prediction, spacing, steps, first step that runs, zero terminal SNR, eta,
16 values.
"""
import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       HeunDiscreteScheduler, LCMScheduler, TCDScheduler,
                       UniPCMultistepScheduler)
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

ELEMS = 16
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
             num_train_timesteps=1000)
SAMPLERS = {
    "ddim": (DDIMScheduler, dict(set_alpha_to_one=False, clip_sample=False)),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, {}),
    "dpm++2m-sde": (DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++")),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "tcd": (TCDScheduler, {}),
}
OWN_SPACING = ("lcm", "tcd")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


def scheduler(name, prediction, spacing, steps, zero_snr):
    kind, options = SAMPLERS[name]
    options = dict(BETAS, **options, prediction_type=PREDICTIONS[prediction])
    if name not in OWN_SPACING:
        options |= dict(steps_offset=1, timestep_spacing=spacing)
        if spacing == "karras":
            options |= dict(timestep_spacing="linspace", use_karras_sigmas=True)
    if name == "euler-a":
        options.pop("use_karras_sigmas", None)
    if name == "heun" and zero_snr:
        # It has no option for it.
        betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
        made = kind(**options, trained_betas=rescale_zero_terminal_snr(betas).numpy())
        made.alphas_cumprod[-1] = 2**-24
    elif zero_snr:
        made = kind(**options, rescale_betas_zero_snr=True)
    else:
        made = kind(**options)
    made.set_timesteps(steps)
    if name == "euler-a" and spacing == "karras":
        # It has no option for it; its levels are Euler's.
        euler = scheduler("euler", prediction, spacing, steps, zero_snr)
        made.sigmas, made.timesteps = euler.sigmas, euler.timesteps
    return made


def network(x, t):
    phase = torch.arange(ELEMS, dtype=torch.float32).reshape(x.shape) / 2
    return 0.6 * x + 0.4 * torch.sin(0.1 * float(t) + 2 * x + phase)


def row(name, prediction, spacing, steps, first=0, zero_snr=False, eta=0.0):
    made = scheduler(name, prediction, spacing, steps, zero_snr)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    order = 2 if name == "heun" else 1
    if name == "heun":
        # In FP32, its own rounding is 2e-3 where a run begins at a standard deviation of 4096.
        latents = latents.double()
    timesteps = made.timesteps[first * order:]
    if first:
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(first * order)
    else:
        latents = latents * made.init_noise_sigma
    extra = {}
    if name in ("ddim", "tcd"):
        extra["eta"] = eta
    if name in ("ddim", "euler-a", "dpm++2m-sde", "lcm", "tcd"):
        extra["generator"] = generator
    for t in timesteps:
        output = network(made.scale_model_input(latents, t), t)
        latents = made.step(output, t, latents, **extra).prev_sample
    values = "\t".join(f"{value:.7g}" for value in latents.flatten().tolist())
    print(name, prediction, spacing, steps, first, int(zero_snr), f"{eta:g}", values, sep="\t")


torch.set_grad_enabled(False)
for name in SAMPLERS:
    own = name in OWN_SPACING
    eta = 0.3 if name == "tcd" else 0.0
    for prediction in ("epsilon", "v"):
        for spacing in ("-",) if own else ("leading", "trailing"):
            for steps in (1, 2, 4, 20):
                row(name, prediction, spacing, steps, eta=eta)
    for steps in (1, 4, 20):
        row(name, "v", "-" if own else "trailing", steps, zero_snr=True, eta=eta)
    if name != "euler-a":  # It predicts no sample.
        row(name, "sample", "-" if own else "trailing", 4, eta=eta)
    row(name, "epsilon", "-" if own else "leading", 6, first=2, eta=eta)
    if not own:
        for steps in (4, 20):
            row(name, "epsilon", "linspace", steps)
    if not own and name != "ddim":
        for prediction in ("epsilon", "v"):
            for steps in (4, 20):
                row(name, prediction, "karras", steps)
for eta in (0.0, 1.0):
    row("tcd", "epsilon", "-", 4, eta=eta)
for eta in (0.5, 1.0):
    row("ddim", "epsilon", "leading", 5, eta=eta)
