"""What can be wrong with a record, by name: errors carry it, and the check counts by it."""

from typing import Literal, get_args

FaultKind = Literal[
    "malformed JSON",
    "missing key",
    "wrong type",
    "unknown role",
    "role order",
    "empty answer",
    "bad text",
    "tags and media differ",
    "missing file",
    "outside the image folder",
    "address refused",
    "empty file",
    "not a picture or video",
    "damaged file",
    "too many pixels",
    "too thin",
    "no video frames",
    "too long",
    "crash",
    "other",
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


class Fault(ValueError):
    """Something in a user's data that is wrong in a known way.

    Args:
        message: What was found, and what to do.
        kind: Its name.
    """

    # The message alone must do: errors travel between processes so.
    def __init__(self, message: str, kind: FaultKind = "other") -> None:
        super().__init__(message)
        self.kind = kind

    def named(self, message: str) -> "Fault":
        """Make the same fault with another message."""
        return Fault(message, self.kind)


def as_fault(error: Exception) -> Fault:
    """Bring any error about a user's data into this form."""
    if isinstance(error, Fault):
        return error
    return Fault(str(error), "missing file" if isinstance(error, FileNotFoundError) else "other")
