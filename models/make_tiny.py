"""The tiny decoder of the small model, and reference tensors of tiny autoencoders, made with diffusers.

usage: make_tiny.py TINY_VAE GOLDEN_DIR SMALL_DIR     TINY_VAE: an AutoencoderTiny as .safetensors

FP32 on a CPU. Reads 0-latents-20 and writes:
  GOLDEN_DIR/../emoji-256-tiny.safetensors   the decoder's half of TINY_VAE
  GOLDEN_DIR/0-tiny.png                      it decodes 0-latents-20
  SMALL_DIR/small.safetensors                a small AutoencoderTiny with seeded values
  SMALL_DIR/{latent,image,mean}.npy          the small one decodes latent to image, and encodes image to mean
"""
import sys

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

TINY_VAE, GOLDEN, SMALL = sys.argv[1:4]
torch.set_grad_enabled(False)
torch.set_num_threads(1)

tensors = load_file(TINY_VAE)
decoder = {name: value for name, value in tensors.items() if name.startswith("decoder.")}
save_file(decoder, f"{GOLDEN}/../emoji-256-tiny.safetensors", metadata={"format": "pt"})
tiny = AutoencoderTiny().eval()
tiny.load_state_dict({name: value.float() for name, value in tensors.items()})
latent = torch.from_numpy(np.load(f"{GOLDEN}/0-latents-20.npy")).reshape(1, 4, 32, 32)
image = tiny.decode(latent).sample.clamp(-1, 1)[0]
pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
Image.fromarray(pixels).save(f"{GOLDEN}/0-tiny.png", optimize=True)

torch.manual_seed(0)
small = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
                        num_encoder_blocks=(1, 2, 1, 1), num_decoder_blocks=(2, 1, 1, 1)).eval()
for value in small.parameters():
    value.copy_(value.half().float())
halves = {name: value.half() for name, value in small.state_dict().items()}
save_file(halves, f"{SMALL}/small.safetensors", metadata={"format": "pt"})
latent = 2 * torch.randn(1, 4, 4, 4)
image = small.decode(latent).sample
mean = small.encode(image).latents
for name, value in [("latent", latent), ("image", image), ("mean", mean)]:
    print(name, tuple(value.shape), "standard deviation", float(value.std()))
    np.save(f"{SMALL}/{name}.npy", np.ascontiguousarray(value[0].numpy()))
