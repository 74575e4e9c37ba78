"""The C library: its header, read by cffi, and the library beside this file."""

import pathlib
import re
from typing import Any

import cffi

from . import _errors

_FOLDER = pathlib.Path(__file__).parent


def _declarations(header: str) -> str:
    """The header without what only a C compiler's preprocessor reads."""
    header = re.sub(r'#ifdef __cplusplus\n.*?#endif[^\n]*\n', "", header, flags=re.DOTALL)
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


_HEADER = (_FOLDER / "kiln.h").read_text(encoding="utf-8")
# The header's types are not Python's: each call stands in one place, in `_session`.
ffi: Any = cffi.FFI()
ffi.cdef(_declarations(_HEADER))
lib: Any = ffi.dlopen(str(_FOLDER / "libkiln_runtime.so"))

_wanted = re.search(r"#define KILN_ABI_VERSION (\d+)", _HEADER)
if _wanted is None or lib.kiln_abi_version() != int(_wanted[1]):
    raise ImportError("libkiln_runtime.so does not fit kiln.h; install the package anew")


def check(status: int) -> None:
    """Raises the exception of a call's status, unless it succeeded."""
    if status != 0:
        raise _errors.of_status(status, text(lib.kiln_last_error()))


def text(pointer: Any) -> str:
    """A text of the library."""
    raw: bytes = ffi.string(pointer)
    return raw.decode("utf-8", "replace")


def given(value: str | None) -> Any:
    """A text for the library, which the caller keeps alive; NULL for none."""
    if value is None:
        return ffi.NULL
    if "\0" in value:
        raise _errors.InputError("a text has a NUL character")
    return ffi.new("char[]", value.encode("utf-8", "surrogateescape"))
