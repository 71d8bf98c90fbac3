"""What can go wrong while a request is answered, in words for whoever sent it."""

from dataclasses import dataclass

import torch
from starlette.exceptions import HTTPException

from phi3v.inference.chat_request import RequestError
from phi3v.inference.scheduling import BusyError, StoppedError


@dataclass(frozen=True)
class Fault:
    """An error as clients see it.

    Attributes:
        status: HTTP status.
        message: What is wrong, and what to do.
        code: Name of the fault for programs.
        param: The field of the request at fault.
    """

    status: int
    message: str
    code: str
    param: str | None = None


def describe_fault(error: Exception) -> Fault:
    """Describe an error; nothing of the server's inside is told."""
    match error:
        case RequestError():
            return Fault(400, str(error), "invalid_request", error.param)
        case ValueError():
            return Fault(400, str(error), "invalid_request", "messages")
        case BusyError():
            return Fault(429, str(error), "overloaded")
        case StoppedError():
            return Fault(503, str(error), "stopping")
        case torch.OutOfMemoryError():
            return Fault(503, "out of memory; send fewer pictures or less text", "out_of_memory")
        case HTTPException():
            return Fault(error.status_code, str(error.detail), "http_error")
    return Fault(500, "the server failed; its log says why", "internal_error")
