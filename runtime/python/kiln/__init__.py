"""Stable Diffusion inside a hard memory budget, on any OpenCL device.

>>> from kiln import Pipeline
>>> with Pipeline("sd21.kiln") as pipe:
...     image = pipe("a lighthouse at dusk", num_inference_steps=20).images[0]
"""

from ._errors import (
    BudgetError,
    BundleError,
    BusyError,
    Cancelled,
    DeviceError,
    InputError,
    InternalError,
    KilnError,
)
from ._pipeline import Memory, Pipeline, PipelineOutput, devices, prepare, use_opencl

__all__ = [
    "BudgetError",
    "BundleError",
    "BusyError",
    "Cancelled",
    "DeviceError",
    "InputError",
    "InternalError",
    "KilnError",
    "Memory",
    "Pipeline",
    "PipelineOutput",
    "devices",
    "prepare",
    "use_opencl",
]
