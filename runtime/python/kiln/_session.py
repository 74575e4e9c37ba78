"""A bundle on a device: the calls of the C interface, with Python's objects."""

import os
import pathlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InputError
from ._native import check, ffi, given, lib, text

#: The sampler runs, in `KilnStage`.
SAMPLE = 2

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Memory:
    """Memory in bytes, planned and measured; 0 if the system does not report it."""

    #: Planned peak of the whole process.
    peak_bytes: int
    #: Budget: the smaller of the pipeline's and the bundle's.
    budget_bytes: int
    #: Current allocations on the device.
    device_bytes: int
    #: Current memory of the process.
    process_bytes: int
    #: Peak memory of the process.
    process_peak_bytes: int


@dataclass(frozen=True)
class Progress:
    """Progress of an image after a step."""

    step: int
    steps: int
    timestep: float
    seconds: float
    preview: Pixels | None


@dataclass(frozen=True)
class Options:
    """How a bundle is loaded."""

    device: str
    cache_folder: str | None
    budget_bytes: int
    trust_key: str | None
    page_cache: bool


@dataclass(frozen=True)
class Request:
    """An image to make. None is the model's default."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int | None
    guidance: float | None
    guidance_rescale: float
    eta: float | None
    sampler: str | None
    spacing: str | None
    decoder: str | None
    plain_prompt: bool
    preview: bool
    fast: int
    guidance_interval: tuple[float, float] | None
    cache_interval: int | None
    latent: NDArray[np.float32] | None
    #: `[height, width, 4]`.
    initial: Pixels | None
    #: `[height, width]`.
    mask: Pixels | None
    strength: float


def user_cache() -> str | None:
    """The user's folder of compiled kernels, as `kiln-run` takes it; None if there is no home."""
    own = os.environ.get("KILN_CACHE")
    if own:
        return own
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.join(home, ".cache") if home else ""
    return os.path.join(cache, "kiln", "programs") if cache else None


def made_folder(folder: str) -> str:
    """The folder of a cache, made for the user alone if it is not there."""
    pathlib.Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class Bundle:
    """An open bundle."""

    def __init__(self, path: str) -> None:
        out = ffi.new("KilnBundle **")
        check(lib.kiln_bundle_open(given(path), out))
        self._bundle = ffi.gc(out[0], lib.kiln_bundle_close)
        info = ffi.new("KilnBundleInfo *")
        check(lib.kiln_bundle_info(self._bundle, info))
        self.model = text(info.model)
        self.precision = text(info.precision)
        self.peak_bytes = int(info.peak_bytes)
        self.sizes = [self._size(index) for index in range(info.size_count)]

    def _size(self, index: int) -> tuple[int, int]:
        width, height = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        check(lib.kiln_bundle_size(self._bundle, index, width, height))
        return int(width[0]), int(height[0])

    def load(
        self,
        options: Options,
        size: tuple[int, int],
        progress: Callable[[int, int], None] | None,
    ) -> "Session":
        """Loads the bundle for images of a size; `progress` gets kernels compiled, and all."""
        own = ffi.new("KilnSessionOptions *")
        lib.kiln_session_options_init(own)
        kept = [given(options.device), given(options.cache_folder), given(options.trust_key)]
        own.device, own.cache_folder, own.trust_key = kept
        own.budget_bytes = options.budget_bytes
        own.width, own.height = size
        own.page_cache = options.page_cache
        raised: list[BaseException] = []

        def tell(_context: Any, told: Any) -> bool:
            if progress is not None and not raised:
                progress(told.step, told.of)
            return True

        function = _callback(tell, raised)
        out = ffi.new("KilnSession **")
        status = lib.kiln_session_create(self._bundle, own, function, ffi.NULL, out)
        if status == 0 and raised:
            lib.kiln_session_close(out[0])
        if raised:
            raise raised[0]
        check(status)
        return Session(out[0], size)


class Session:
    """A bundle that is loaded on a device. Any thread may use it; one at a time makes an image."""

    def __init__(self, session: Any, size: tuple[int, int]) -> None:
        self._session = ffi.gc(session, lib.kiln_session_close)
        self._making = threading.Lock()
        self.size = size

    def generate(
        self, request: Request, observe: Callable[[Progress], None] | None
    ) -> tuple[Pixels, list[str]]:
        """Makes an image, `[height, width, 3]`, and its warnings. `observe` runs on this thread."""
        own = ffi.new("KilnRequest *")
        lib.kiln_request_init(own)
        kept = _fill(own, request)
        raised: list[BaseException] = []

        def tell(_context: Any, told: Any) -> bool:
            if told.stage == SAMPLE and observe is not None:
                observe(_progress(told))
            return not raised

        # Python handles Ctrl-C when it runs, so it is called after each step in any case.
        function = _callback(tell, raised)
        out = ffi.new("KilnPicture **")
        with self._making:
            status = lib.kiln_session_generate(self._session, own, function, ffi.NULL, out)
        del kept
        if raised:
            raise raised[0]
        check(status)
        return _picture(ffi.gc(out[0], lib.kiln_picture_free))

    def cancel(self) -> None:
        """Cancels the current image, from any thread."""
        check(lib.kiln_session_cancel(self._session))

    def trim(self) -> None:
        """Releases memory that the next image allocates again."""
        check(lib.kiln_session_trim(self._session))

    def memory(self) -> Memory:
        """Current memory."""
        found = ffi.new("KilnMemory *")
        check(lib.kiln_session_memory(self._session, found))
        return Memory(
            peak_bytes=found.peak_bytes,
            budget_bytes=found.budget_bytes,
            device_bytes=found.device_bytes,
            process_bytes=found.process_bytes,
            process_peak_bytes=found.process_peak_bytes,
        )

    def close(self) -> None:
        """Cancels the current image, waits for its end, and frees everything."""
        self.cancel()
        with self._making:
            ffi.release(self._session)


def _callback(tell: Callable[[Any, Any], bool], raised: list[BaseException]) -> Any:
    """A function for the library. What `tell` raises goes into `raised` and ends the call."""

    def failed(_kind: Any, error: BaseException, _trace: Any) -> None:
        raised.append(error)

    return ffi.callback(
        "bool(void *, const KilnProgress *)", tell, error=False, onerror=failed
    )


def _progress(told: Any) -> Progress:
    preview = None
    if told.preview_rgb != ffi.NULL:
        shape = (told.preview_height, told.preview_width, 3)
        raw = ffi.buffer(told.preview_rgb, shape[0] * shape[1] * shape[2])
        preview = np.frombuffer(raw, np.uint8).reshape(shape).copy()
    return Progress(told.step, told.of, told.timestep, told.seconds, preview)


def _picture(picture: Any) -> tuple[Pixels, list[str]]:
    width, height = lib.kiln_picture_width(picture), lib.kiln_picture_height(picture)
    rgba = np.empty((height, width, 4), np.uint8)
    pixels = ffi.from_buffer("uint8_t[]", rgba, require_writable=True)
    check(lib.kiln_picture_rgba(picture, pixels, rgba.nbytes))
    warnings: list[str] = []
    while (warning := lib.kiln_picture_warning(picture, len(warnings))) != ffi.NULL:
        warnings.append(text(warning))
    return np.ascontiguousarray(rgba[:, :, :3]), warnings


def _fill(own: Any, request: Request) -> list[Any]:
    """Fills a request for the library. The answer must live as long as the request."""
    texts = (request.prompt, request.negative_prompt, request.sampler, request.spacing)
    kept = [given(value) for value in (*texts, request.decoder)]
    own.prompt, own.negative_prompt, own.sampler, own.spacing, own.decoder = kept
    own.seed = request.seed
    own.steps = request.steps or 0
    own.guidance_rescale = request.guidance_rescale
    own.plain_prompt = request.plain_prompt
    own.preview = request.preview
    own.fast = request.fast
    own.cache_interval = request.cache_interval or 0
    if request.guidance_interval is not None:
        own.guidance_start, own.guidance_stop = request.guidance_interval
    if request.guidance is not None:
        own.guidance = request.guidance
    if request.eta is not None:
        own.eta = request.eta
    if request.latent is not None:
        latent = np.ascontiguousarray(request.latent, np.float32)
        kept.append(ffi.from_buffer("float[]", latent))
        own.initial_latent, own.latent_elems = kept[-1], latent.size
    if request.initial is not None:
        pixels = np.ascontiguousarray(request.initial)
        kept.append(ffi.from_buffer("uint8_t[]", pixels))
        image = ffi.new("KilnImage *")
        image.rgba, image.strength = kept[-1], request.strength
        image.height, image.width = pixels.shape[:2]
        kept.append(image)
        own.initial_image = image
    if request.mask is not None:
        if request.initial is None or request.mask.shape != request.initial.shape[:2]:
            raise InputError("the mask has no initial image of its size")
        kept.append(ffi.from_buffer("uint8_t[]", np.ascontiguousarray(request.mask)))
        own.mask = kept[-1]
    return kept


def devices() -> list[str]:
    """Names of all OpenCL devices."""
    out = ffi.new("KilnDevices **")
    check(lib.kiln_devices_list(out))
    found = ffi.gc(out[0], lib.kiln_devices_free)
    device = ffi.new("KilnDevice *")
    names = []
    for index in range(lib.kiln_devices_count(found)):
        check(lib.kiln_devices_get(found, index, device))
        names.append(text(device.name))
    return names


def use_opencl(library: str) -> None:
    """Sets the OpenCL library to use instead of a search. Call it first."""
    check(lib.kiln_use_opencl(given(library)))


