"""Failures of the library as exceptions: one class for each status of the C interface."""


class KilnError(RuntimeError):
    """A call that failed.

    `status`: the number of the C interface's `KilnStatus`. `message`: one line.
    """

    status = 0

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BundleError(KilnError):
    """The bundle is damaged, or of another version."""

    status = 1


class InputError(KilnError, ValueError):
    """An argument or a file is invalid."""

    status = 2


class DeviceError(KilnError):
    """The device, its driver or its library failed, or is too small for the bundle."""

    status = 3


class BudgetError(KilnError, MemoryError):
    """The bundle needs more memory than the budget."""

    status = 4


class Cancelled(KilnError):
    """The image was cancelled."""

    status = 5


class BusyError(KilnError):
    """Another thread is making an image with this session."""

    status = 6


class InternalError(KilnError):
    """A fault of the library. Close the pipeline."""

    status = 7


_BY_STATUS: dict[int, type[KilnError]] = {
    kind.status: kind
    for kind in (
        BundleError,
        InputError,
        DeviceError,
        BudgetError,
        Cancelled,
        BusyError,
        InternalError,
    )
}


def of_status(status: int, message: str) -> KilnError:
    """The exception of a status other than success."""
    return _BY_STATUS.get(status, KilnError)(message)
