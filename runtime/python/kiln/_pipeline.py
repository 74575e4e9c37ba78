"""A pipeline with the parameters of diffusers."""

import os
import re
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import InputError
from ._session import (
    Bundle,
    Memory,
    Options,
    Pixels,
    Progress,
    Request,
    Session,
    devices,
    made_folder,
    use_opencl,
    user_cache,
)

Path = str | os.PathLike[str]
#: A picture: of Pillow, or `[height, width, 3]` as bytes or as floats from 0 to 1.
Picture = Image.Image | NDArray[Any]
#: Called after each step with the pipeline, the index of the step, its timestep, and a dictionary
#: with `preview` and `seconds`. It may call `cancel`; what it raises ends the call.
StepCallback = Callable[["Pipeline", int, float, dict[str, Any]], Any]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class Generator(Protocol):
    """A generator of which the seed is known, such as PyTorch's."""

    def initial_seed(self) -> int:
        """The seed."""


@dataclass(frozen=True)
class PipelineOutput:
    """Finished images."""

    #: `PIL.Image.Image` objects, or an array `[count, height, width, 3]` from 0 to 1.
    images: Any
    #: The seed of each image.
    seeds: list[int]
    #: What the user should know, for example that a prompt was cut.
    warnings: list[str]


class Pipeline:
    """A compiled model on an OpenCL device: makes images from prompts.

    Any thread may call `cancel`, `trim` and `memory` at any time. One call at a time makes images;
    others wait for it.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        device: str | int = "auto",
        budget: int | str | None = None,
        height: int | None = None,
        width: int | None = None,
        cache: Path | bool = True,
        trust_key: str | None = None,
        page_cache: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Loads a bundle. The first time on a device, its driver compiles the kernels.

        `device`: `auto`, an index, or a part of a name. `budget`: largest planned peak of the
        bundle, bytes or a text such as `1GiB`. `height`, `width`: of the images, if the bundle has
        several sizes. `cache`: folder of compiled kernels; True is the user's, False is none.
        `trust_key`: public key that must have signed the bundle. `page_cache`: keep weights in
        memory outside the budget. `progress`: gets the number of kernels compiled, and of all.
        """
        folder = user_cache() if cache is True else None if cache is False else os.fspath(cache)
        self._options = Options(
            device=str(device),
            cache_folder=None if folder is None else made_folder(folder),
            budget_bytes=_bytes(budget),
            trust_key=trust_key,
            page_cache=page_cache,
        )
        self._bundle: Bundle | None = Bundle(os.fspath(bundle))
        self._progress = progress
        self._session: Session | None = None
        self._at_size(width, height)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._opened().model

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of the images that the bundle was compiled for."""
        return list(self._opened().sizes)

    @property
    def memory(self) -> Memory:
        """Current memory."""
        return self._loaded().memory()

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        seed: int | None = None,
        latents: Any = None,
        image: Picture | None = None,
        mask_image: Picture | None = None,
        strength: float | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        spacing: str | None = None,
        decoder: str | None = None,
        plain_prompt: bool = False,
        fast: int = 0,
        guidance_interval: tuple[float, float] | None = None,
        cache_interval: int | None = None,
        output_type: str = "pil",
        preview: bool = False,
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineOutput:
        """Makes images. Parameters with the names of diffusers mean the same.

        None is the model's default. The first image of a call has the seed `seed`, or that of
        `generator`, or a random one; the following ones count up. `latents`: noise of variance 1 in
        place of the seed's, for one image. `sampler`, `spacing`, `decoder`, `plain_prompt`, `fast`,
        `guidance_interval`, `cache_interval`: as `kiln run` has them. `preview`: `callback_on_step_end` gets previews.

        Raises `InputError` for arguments that do not fit, `Cancelled` after `cancel`, and other
        `KilnError`s.
        """
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type is {output_type!r}, it must be 'pil' or 'np'")
        jobs = _jobs(prompt, negative_prompt, num_images_per_prompt)
        seeds = _seeds(seed, generator, len(jobs))
        if latents is not None and len(jobs) > 1:
            raise InputError("latents are for one image, not for several")
        initial, mask = _initial(image, mask_image)
        chosen = strength if strength is not None else 0.75 if mask is None else 1.0
        session = self._at_size(width, height)
        pixels: list[Pixels] = []
        told: list[str] = []
        for (text, negative), own_seed in zip(jobs, seeds):
            request = Request(
                prompt=text,
                negative_prompt=negative,
                seed=own_seed,
                steps=num_inference_steps,
                guidance=guidance_scale,
                guidance_rescale=guidance_rescale,
                eta=eta,
                sampler=sampler,
                spacing=spacing,
                decoder=decoder,
                plain_prompt=plain_prompt,
                fast=fast,
                guidance_interval=guidance_interval,
                cache_interval=cache_interval,
                preview=preview,
                latent=None if latents is None else np.asarray(latents, np.float32),
                initial=initial,
                mask=mask,
                strength=chosen,
            )
            made, warned = session.generate(request, self._observer(callback_on_step_end))
            pixels.append(made)
            told += [warning for warning in warned if warning not in told]
        for warning in told:
            warnings.warn(warning, stacklevel=2)
        images: Any = [Image.fromarray(made) for made in pixels]
        if output_type == "np":
            images = np.stack(pixels).astype(np.float32) / 255.0
        return PipelineOutput(images, seeds, told)

    def cancel(self) -> None:
        """Cancels the current image, from any thread: its call raises `Cancelled`."""
        self._loaded().cancel()

    def trim(self) -> None:
        """Releases memory that the next image allocates again."""
        self._loaded().trim()

    def close(self) -> None:
        """Cancels the current image, waits for its end, and frees everything."""
        session, self._session, self._bundle = self._session, None, None
        if session is not None:
            session.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> Bundle:
        if self._bundle is None:
            raise InputError("the pipeline is closed")
        return self._bundle

    def _loaded(self) -> Session:
        if self._session is None:
            raise InputError("the pipeline is closed")
        return self._session

    def _at_size(self, width: int | None, height: int | None) -> Session:
        """The session for images of a size; a side that is not given stays as it is."""
        bundle, session = self._opened(), self._session
        own = bundle.sizes[0] if session is None else session.size
        size = (own[0] if width is None else width, own[1] if height is None else height)
        if session is not None and session.size == size:
            return session
        if size not in bundle.sizes:
            known = ", ".join(f"{w}x{h}" for w, h in bundle.sizes)
            raise InputError(f"the bundle has no {size[0]}x{size[1]}; it was compiled for {known}")
        if session is not None:
            self._session = None
            session.close()
        self._session = bundle.load(self._options, size, self._progress)
        return self._session

    def _observer(self, callback: StepCallback | None) -> Callable[[Progress], None] | None:
        if callback is None:
            return None

        def observe(told: Progress) -> None:
            shown = None if told.preview is None else Image.fromarray(told.preview)
            values = {"preview": shown, "seconds": told.seconds, "steps": told.steps}
            callback(self, told.step - 1, told.timestep, values)

        return observe


def prepare(
    bundle: Path, *, device: str | int = "auto", cache: Path | bool = True, **options: Any
) -> None:
    """Compiles the kernels of a bundle into the cache, so that its first pipeline starts at once.

    `options`: others of `Pipeline`.
    """
    Pipeline(bundle, device=device, cache=cache, **options).close()


def _bytes(budget: int | str | None) -> int:
    """The bytes of a budget; 0 without one."""
    if budget is None:
        return 0
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(budget))
    try:
        count = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    except (KeyError, ValueError):
        count = 0.0
    if not 1 <= count < 2**63:
        raise InputError(f"the budget is {budget!r}, it must be bytes, or a text such as '1GiB'")
    return int(count)


def _jobs(
    prompt: str | Sequence[str], negative: str | Sequence[str] | None, count: int
) -> list[tuple[str, str]]:
    """Prompt and negative prompt of each image."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if negative is None or isinstance(negative, str):
        negatives = [negative or ""] * len(prompts)
    else:
        negatives = list(negative)
    if len(negatives) != len(prompts):
        raise InputError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
    if not prompts or count < 1:
        raise InputError("there is no image to make")
    return [pair for pair in zip(prompts, negatives) for _ in range(count)]


def _seeds(
    seed: int | None, generator: Generator | Sequence[Generator] | None, count: int
) -> list[int]:
    """The seed of each image."""
    if isinstance(generator, Sequence):
        if seed is not None or len(generator) != count:
            raise InputError(f"give a generator for each of {count} images, and no seed")
        return [own.initial_seed() for own in generator]
    if seed is not None and generator is not None:
        raise InputError("give a seed or a generator")
    first = seed if seed is not None else generator.initial_seed() if generator else None
    if first is None or first == -1:
        first = secrets.randbits(32)
    if not 0 <= first < 2**64:
        raise InputError(f"the seed is {first}, it must be from 0 to {2**64 - 1}, or -1 for any")
    return [(first + index) % 2**64 for index in range(count)]


def _initial(image: Picture | None, mask: Picture | None) -> tuple[Pixels | None, Pixels | None]:
    """The pixels of a picture to begin with and of its mask, scaled to it."""
    if image is None:
        if mask is not None:
            raise InputError("a mask needs an image")
        return None, None
    picture = _pillow(image).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, picture))
    if mask is None:
        return pixels, None
    shown = _pillow(mask).convert("L")
    if shown.size != picture.size:
        shown = shown.resize(picture.size)
    return pixels, np.asarray(shown)


def _pillow(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    values = np.asarray(picture)
    if values.ndim not in (2, 3) or values.size == 0:
        raise InputError(f"a picture of shape {values.shape}, it must be [height, width, 3]")
    if values.dtype != np.uint8:
        values = (np.clip(values, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    return Image.fromarray(values)


__all__ = ["Memory", "Pipeline", "PipelineOutput", "devices", "prepare", "use_opencl"]
