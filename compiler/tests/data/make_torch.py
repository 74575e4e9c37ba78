"""Checkpoints as PyTorch writes them, with their values as safetensors.

usage: make_torch.py FOLDER

Writes small.ckpt (a checkpoint of Lightning: values, counters, an optimizer, objects of no tensors),
small.safetensors (its readable tensors in f32), legacy.ckpt (the format of before PyTorch 1.6), and f8.safetensors with
all values of both FP8 types, in f32 as well.
"""
import argparse
import collections
import datetime
import sys

import torch
from safetensors.torch import save_file

folder = sys.argv[1]
generator = torch.Generator().manual_seed(0)
random = lambda *shape: torch.randn(*shape, generator=generator)

base = random(6, 4)
tensors = {
    "half": random(3, 5).half(),
    "bfloat": random(7).bfloat16(),
    "double": random(2, 2, 2).double(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "rows": base[2:5],  # a part of a larger storage
    "all": base,
    "one_column": random(4, 1).T,  # row-major, though its strides are another matrix's
    "parameter": torch.nn.Parameter(random(3)),
}
state = collections.OrderedDict((f"layer.{name}", value) for name, value in tensors.items())
state._metadata = {"": {"version": 1}}
others = {"transposed": random(3, 2).T, "numbers": torch.arange(5), "flags": torch.tensor([True, False])}
state.update((f"layer.{name}", value) for name, value in others.items())
optimizer = torch.optim.AdamW([tensors["parameter"]], lr=1e-4)
tensors["parameter"].grad = random(3)
checkpoint = {
    "epoch": 3, "global_step": 2 ** 40, "loss": 0.25, "name": "small", "none": None, "pair": (1, -2),
    "state_dict": state, "optimizer_states": [optimizer.state_dict()],
    "callbacks": {argparse.Namespace: {"when": datetime.date(2026, 11, 30), "set": {1, 2}, "bytes": b"\x00\x01"}},
}
torch.save(checkpoint, f"{folder}/small.ckpt")
torch.save({"weight": random(2)}, f"{folder}/legacy.ckpt", _use_new_zipfile_serialization=False)
plain = {f"state_dict.layer.{n}": v.detach().float().contiguous().clone() for n, v in tensors.items()}
save_file(plain, f"{folder}/small.safetensors")

codes = torch.arange(256, dtype=torch.uint8)
pairs = {}
for name, dtype in [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]:
    values = codes.view(dtype)
    finite = values.float().isfinite()
    pairs[name] = codes[finite].view(dtype).clone()
    pairs[f"{name}_f32"] = values.float()[finite].clone()
save_file(pairs, f"{folder}/f8.safetensors")
