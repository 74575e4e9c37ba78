"""A reference embedding of a prompt with weights, by transformers and the formula of AUTOMATIC1111's web UI.

usage: make_weighted.py MODEL_DIR GOLDEN_DIR     MODEL_DIR: the model as a diffusers folder

FP32 on a CPU. The pieces and their weights are written out here by hand. Writes:
  0-weighted-text     embedding of PROMPT: rows times the weights of their tokens, its mean brought back
"""
import sys

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

MODEL, GOLDEN = sys.argv[1:3]
PROMPT = "a (red:1.4) [[heart]], (on (snow)) \\(winter\\)"
PIECES = [("a ", 1.0), ("red", 1.4), (" ", 1.0), ("heart", 1 / 1.1 / 1.1), (", ", 1.0), ("on ", 1.1),
          ("snow", 1.1 * 1.1), (" (winter)", 1.0)]
torch.set_grad_enabled(False)
torch.set_num_threads(1)

tokenizer = CLIPTokenizer.from_pretrained(f"{MODEL}/tokenizer")
encoder = CLIPTextModel.from_pretrained(f"{MODEL}/text_encoder").float().eval()
ids, weights = [49406], [1.0]
for text, weight in PIECES:
    found = tokenizer(text, add_special_tokens=False).input_ids
    ids += found
    weights += [weight] * len(found)
ids += [49407]
weights += [1.0] * (77 - len(weights))
ids += [0] * (77 - len(ids))
plain = encoder(torch.tensor([ids])).last_hidden_state
weighted = plain * torch.tensor(weights)[None, :, None]
weighted *= plain.mean() / weighted.mean()
print("relative change", float((weighted - plain).norm() / plain.norm()), ids[:20])
np.save(f"{GOLDEN}/0-weighted-text.npy", weighted[0].numpy())
