#!/usr/bin/env python3
"""Runs one network in one engine, on request.

  python worker.py ENGINE NETWORK [--batch N] [--dtype fp32|fp16|bf16] [--device cpu|cuda] [--threads N]

ENGINE is torch, onnxruntime or openvino; NETWORK is text_encoder, unet or decoder of Stable
Diffusion 2.1-base. Weights are random, as only time is measured. The worker prints a line of JSON when it
is ready. Then it runs the network once for each line on standard input, and prints {"seconds",
"processor_seconds"}.

PyTorch runs the networks of diffusers and transformers with scaled-dot-product attention, channels
last or compiled where asked. The other engines run an ONNX export of the same modules. Packages: torch,
diffusers, transformers; for the other engines onnxscript, and onnxruntime or openvino.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time

import torch


def modules(network):
    """The network with random weights, and its inputs for a batch of one."""
    with torch.device("meta"):
        if network == "unet":
            from diffusers import UNet2DConditionModel

            module = UNet2DConditionModel(
                sample_size=64, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
                use_linear_projection=True)
        elif network == "decoder":
            from diffusers import AutoencoderKL

            module = AutoencoderKL(
                block_out_channels=[128, 256, 512, 512], down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4,
                sample_size=512)
            module.encoder = module.quant_conv = None
        else:
            from transformers import CLIPTextConfig, CLIPTextModel

            module = CLIPTextModel(CLIPTextConfig(
                hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
                num_hidden_layers=23, hidden_act="gelu", projection_dim=512))
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, (1 / parameter[0].numel()) ** 0.5, generator=generator)
        else:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return module.eval().requires_grad_(False)


class Plain(torch.nn.Module):
    """A network as a function of tensors."""

    def __init__(self, network):
        super().__init__()
        self.network, self.module = network, modules(network)

    def forward(self, *inputs):
        if self.network == "unet":
            latent, context = inputs
            timestep = torch.full((latent.shape[0],), 500, device=latent.device)
            return self.module(latent, timestep, context, return_dict=False)[0]
        if self.network == "decoder":
            return self.module.decode(inputs[0], return_dict=False)[0]
        return self.module(inputs[0]).last_hidden_state


def example(network, batch, dtype):
    generator = torch.Generator().manual_seed(1)
    if network == "text_encoder":
        return (torch.ones(batch, 77, dtype=torch.int64),)
    latent = torch.randn(batch, 4, 64, 64, generator=generator).to(dtype)
    if network == "decoder":
        return (latent,)
    return latent, torch.randn(batch, 77, 1024, generator=generator).to(dtype)


def torch_engine(arguments):
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    module = Plain(arguments.network).to(dtype).to(arguments.device)
    inputs = tuple(x.to(arguments.device) for x in example(arguments.network, arguments.batch, dtype))
    if arguments.channels_last:
        module = module.to(memory_format=torch.channels_last)
        inputs = (inputs[0].to(memory_format=torch.channels_last), *inputs[1:])
    if arguments.compiled:
        # On CUDA the launches become one graph.
        module = torch.compile(module, mode="reduce-overhead")
        module(*inputs)
        module(*inputs)

    def call():
        module(*inputs)
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    return call, torch.__version__


def onnx_file(arguments):
    """Exports the network; weights go beside the file."""
    folder = arguments.folder or tempfile.mkdtemp()
    path = os.path.join(folder, f"{arguments.network}-{arguments.batch}.onnx")
    if not os.path.exists(path):
        module = Plain(arguments.network)
        inputs = example(arguments.network, arguments.batch, torch.float32)
        torch.onnx.export(module, inputs, path, dynamo=True, external_data=True, verbose=False)
    return path


def feed(names, arguments):
    inputs = example(arguments.network, arguments.batch, torch.float32)
    return {name: x.numpy() for name, x in zip(names, inputs)}


def onnxruntime_engine(arguments):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(
        onnx_file(arguments), options, providers=["CPUExecutionProvider"])
    inputs = feed([i.name for i in session.get_inputs()], arguments)
    return lambda: session.run(None, inputs), onnxruntime.__version__


def openvino_engine(arguments):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(onnx_file(arguments), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = feed([i.any_name for i in compiled.inputs], arguments)
    return lambda: request.infer(inputs), openvino.__version__


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["torch", "onnxruntime", "openvino"])
    parser.add_argument("network", choices=["text_encoder", "unet", "decoder"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile")
    parser.add_argument("--folder", help="where ONNX files are kept")
    arguments = parser.parse_args()
    # Keeps what libraries print out of the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    engine = {"torch": torch_engine, "onnxruntime": onnxruntime_engine, "openvino": openvino_engine}
    call, version = engine[arguments.engine](arguments)
    call()
    answers.write(json.dumps({"ready": True, "engine": arguments.engine, "version": version}) + "\n")
    for _ in sys.stdin:
        before, start = processor_seconds(), time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        answers.write(json.dumps(
            {"seconds": seconds, "processor_seconds": processor_seconds() - before}) + "\n")


if __name__ == "__main__":
    main()
