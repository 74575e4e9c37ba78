"""Writes lora.safetensors: LoRAs of each kind for three small layers, and the layers merged with them.

PEFT merges its own; LyCORIS' functions make the changes of the others. `base/` has the layers in the
names of single files, `<kind>/` a LoRA in the names of its file, `<kind>=<strength>/` the merged layers.
Run with torch, peft, lycoris-lora and safetensors:

    python3 compiler/tests/data/make_lora.py
"""

from pathlib import Path

import torch
from lycoris.functional import general, locon, loha, lokr
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

RANK = 3
LINEAR, CONV, TEXT = "linear", "conv", "text"
# Single-file names, and those of diffusers and transformers.
BASE = {
    LINEAR: "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    CONV: "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
    TEXT: "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
}
DIFFUSERS = {
    LINEAR: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    CONV: "unet.down_blocks.0.resnets.0.conv1",
    TEXT: "text_encoder.text_model.encoder.layers.0.self_attn.k_proj",
}
torch.manual_seed(0)
torch.set_grad_enabled(False)
base = {LINEAR: torch.randn(6, 8), CONV: torch.randn(6, 4, 3, 3), TEXT: torch.randn(24, 8)}
tensors = {f"base/{BASE[layer]}": value for layer, value in base.items()}


def kohya(layer):
    name = DIFFUSERS[layer].replace(".", "_")
    return "lora_" + name.replace("text_encoder", "te", 1)


def of_layer(layer):
    """The layer's own rows: the keys of the text encoder's three stacked matrices."""
    return base[layer][8:16] if layer == TEXT else base[layer]


def add(kind, layer, parts, strength, merged):
    """A layer's tensors and its merged weight."""
    tensors.update({f"{kind}/{name}": value.contiguous() for name, value in parts.items()})
    whole = base[layer].clone()
    whole[8:16] = merged if layer == TEXT else whole[8:16]
    tensors[f"{kind}={strength}/{BASE[layer]}"] = whole if layer == TEXT else merged.contiguous()


def add_change(kind, layer, parts, change, strength, magnitude=None, by_rows=True):
    """A change by LyCORIS' names."""
    named = {f"{kohya(layer)}.{part}": value for part, value in parts.items()}
    weight = of_layer(layer)
    if magnitude is None:
        return add(kind, layer, named, strength, weight + strength * change)
    named[f"{kohya(layer)}.dora_scale"] = magnitude
    merged = general.weight_decompose(weight + change, magnitude, strength, by_rows, backend="torch")
    add(kind, layer, named, strength, merged)


def peft(kind, strength, dora):
    for layer in (LINEAR, CONV, TEXT):
        weight = of_layer(layer)
        kernel = weight.shape[2:]
        module = torch.nn.Conv2d(4, 6, 3, bias=False) if kernel else torch.nn.Linear(8, weight.shape[0], bias=False)
        module.weight.copy_(weight)
        model = torch.nn.Sequential(module)
        # PEFT scales by alpha / rank; a file without an alpha means 1, times the strength.
        config = LoraConfig(r=RANK, lora_alpha=RANK * strength, target_modules=["0"], use_dora=dora)
        tuned = get_peft_model(model, config).base_model.model[0]
        parts = {}
        for name, value in tuned.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape) if "magnitude" not in name else value * 1.3)
                name = name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
                parts[f"{DIFFUSERS[layer]}.{name}"] = value.clone()
        tuned.merge()
        add(kind, layer, parts, strength, tuned.base_layer.weight.clone())


peft("peft", 0.5, False)
peft("dora", 1.0, True)

for layer, shape in ((LINEAR, (6, 8)), (TEXT, (8, 8)), (CONV, (6, 4, 3, 3))):
    window = shape[2:]
    down, up = torch.randn(RANK, shape[1], *window), torch.randn(shape[0], RANK, *[1] * len(window))
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    change = locon.diff_weight(down, up, None, gamma=1.5 / RANK, backend="torch").reshape(shape)
    add_change("kohya", layer, parts, change, 0.8)

down, mid, up = torch.randn(RANK, 4, 1, 1), torch.randn(RANK, RANK, 3, 3), torch.randn(6, RANK, 1, 1)
parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
change = locon.diff_weight(down, up, mid, gamma=2.0 / RANK, backend="torch").reshape(6, 4, 3, 3)
add_change("locon", CONV, parts, change, 1.0)

factors = [torch.randn(RANK, 8), torch.randn(6, RANK), torch.randn(RANK, 8), torch.randn(6, RANK)]
names = ["hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a"]
gamma = torch.tensor(1.0 / RANK)
change = loha.diff_weight(*factors, None, None, gamma=gamma, backend="torch")
add_change("loha", LINEAR, {**dict(zip(names, factors)), "alpha": torch.tensor(1.0)}, change, 0.7)
factors = [torch.randn(RANK, 4), torch.randn(RANK, 6), torch.randn(RANK, 4), torch.randn(RANK, 6)]
cores = [torch.randn(RANK, RANK, 3, 3), torch.randn(RANK, RANK, 3, 3)]
change = loha.diff_weight(*factors, *cores, gamma=gamma, backend="torch")
parts = {**dict(zip(names, factors)), "hada_t1": cores[0], "hada_t2": cores[1], "alpha": torch.tensor(1.0)}
add_change("loha", CONV, parts, change, 0.7)

first, second = torch.randn(2, 2), torch.randn(3, 4)
change = lokr.diff_weight(first, None, None, second, None, None, None, gamma=1.0, backend="torch")
add_change("lokr", LINEAR, {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(7.0)}, change, 1.0)
first, up, down = torch.randn(2, 2), torch.randn(3, RANK), torch.randn(RANK, 2, 3, 3)
weights = (first, None, None, None, up, down, None)
change = lokr.kron_weight(*weights, scale=1.5 / RANK, backend="torch")
parts = {"lokr_w1": first, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(1.5)}
add_change("lokr", CONV, parts, change, 1.0)

first, up, down, core = torch.randn(2, 2), torch.randn(RANK, 3), torch.randn(RANK, 2), torch.randn(RANK, RANK, 3, 3)
change = lokr.kron_weight(first, None, None, None, up, down, core, scale=1.5 / RANK, backend="torch")
parts = {"lokr_w1": first, "lokr_w2_a": up, "lokr_w2_b": down, "lokr_t2": core, "alpha": torch.tensor(1.5)}
add_change("lokr-tucker", CONV, parts, change, 1.0)

for kind, by_rows in (("dora-rows", True), ("dora-columns", False)):
    down, up = torch.randn(RANK, 4, 3, 3), torch.randn(6, RANK, 1, 1)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    change = locon.diff_weight(down, up, None, gamma=1.0 / RANK, backend="torch").reshape(6, 4, 3, 3)
    magnitude = 1 + torch.rand((6, 1, 1, 1) if by_rows else (1, 4, 1, 1))
    add_change(kind, CONV, parts, change, 0.6, magnitude, by_rows)

save_file({name: value.float().contiguous() for name, value in tensors.items()}, Path(__file__).parent / "lora.safetensors")
print(len(tensors), "tensors")
