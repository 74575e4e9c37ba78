"""Latents of a small model for inpainting, made with diffusers' pipeline.

usage: make.py CHECKPOINT FOLDER IDS

CHECKPOINT is `small-inpaint/small.safetensors`, which the test `small_models` writes below
`target/tmp`; its values follow from the names of its tensors. IDS: `models/emoji-256-golden/0-ids.npy`,
the tokens of "a red heart". Writes into FOLDER, FP32 on a CPU:
  init.png, mask.png   32x32; the right half of the mask is white
  latents-K.npy        after K of 4 DDIM steps, guidance 7.5, noise of seed 0; the encoder's mean in
                       place of a sample
"""
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline,
                       UNet2DConditionModel)
from diffusers.loaders.single_file_utils import (convert_ldm_unet_checkpoint,
                                                 convert_ldm_vae_checkpoint)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

CHECKPOINT, FOLDER, IDS = sys.argv[1:4]
START, END, TOKENS = 49406, 49407, 77  # Kiln pads with 0.

torch.set_grad_enabled(False)
DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
weights = load_file(CHECKPOINT)
unet = UNet2DConditionModel(
    in_channels=9, sample_size=16, block_out_channels=[64], layers_per_block=1,
    down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
    cross_attention_dim=32, attention_head_dim=2)
unet.load_state_dict(convert_ldm_unet_checkpoint(dict(weights), dict(unet.config)))
vae = AutoencoderKL(
    block_out_channels=[32, 32], layers_per_block=1, sample_size=32, latent_channels=4,
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
vae.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), dict(vae.config)))
text = CLIPTextModel(CLIPTextConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128,
    hidden_act="quick_gelu", vocab_size=49408, max_position_embeddings=TOKENS))
prefix = "cond_stage_model.transformer."
own = {key[len(prefix):]: value for key, value in weights.items() if key.startswith(prefix)}
names = set(text.state_dict())
own = {key if key in names else key.removeprefix("text_model."): own[key] for key in own}
text.load_state_dict(own)
for module in (unet, vae, text):
    module.eval()


def embedding(words):
    ids = [START, *words] + [END] + [0] * (TOKENS - 2 - len(words))
    return text(torch.tensor([ids])).last_hidden_state


words = [int(i) for i in np.load(IDS).flatten()[1:]]
words = words[:words.index(END)]
y, x = np.mgrid[:32, :32]
init = np.stack([8 * x, 8 * y, 255 - 4 * (x + y)], 2).astype(np.uint8)
Image.fromarray(init).save(f"{FOLDER}/init.png")
Image.fromarray(((x >= 16) * 255).astype(np.uint8)).save(f"{FOLDER}/mask.png")

scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                          clip_sample=False, set_alpha_to_one=False, steps_offset=1)
pipeline = StableDiffusionInpaintPipeline(
    vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False)
for strength, count in ((1.0, 4), (0.5, 2)):
    latents = pipeline(
        prompt_embeds=embedding(words), negative_prompt_embeds=embedding([]),
        image=Image.fromarray(init), mask_image=Image.open(f"{FOLDER}/mask.png"), height=32,
        width=32, strength=strength, num_inference_steps=4, guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0), output_type="latent").images
    np.save(f"{FOLDER}/latents-{count}.npy", latents[0].numpy())
