"""Reads what a record says of one medium: a path, an address, or the file itself."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from phi3v.data.faults import Fault
from phi3v.data.turns import Media, MediaKind


def read_media(value: Any, kind: MediaKind) -> Media:
    """Read one picture or video of a record.

    Args:
        value: A path or an address; a ``data:`` address with the file in base64; the bytes of the
            file; or an object with ``bytes`` and ``path``, of which one may be null.
        kind: What it is.

    Raises:
        ValueError: If it is nothing of these; the message goes on behind the name of a key.
    """
    path: Any = value
    content: Any = None
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
        path, content = value.get("path"), value.get("bytes")
    elif isinstance(value, bytes):
        path, content = None, value
    if content is None and isinstance(path, str) and path.startswith("data:"):
        path, content = None, path
    if isinstance(content, str):
        content = _decode(content)
    if isinstance(content, bytes):
        return Media(kind, path if isinstance(path, str) and path else f"embedded {kind}", content)
    if content is not None or not isinstance(path, str) or not path:
        found = "an empty path" if path == "" else kind_of(value)
        raise Fault(f"holds {found}; expected a path or a list of paths", "wrong type")
    return Media(kind, path)


def as_address(content: Any) -> str:
    """Write the bytes of an embedded file so that JSON can hold them; `read_media` reads it."""
    if not isinstance(content, bytes):
        raise TypeError(f"{type(content).__name__} is not written in JSON")
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def _decode(address: str) -> bytes:
    head, comma, text = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Fault(
            f"holds {address[:40]!r}; a data: address must be written as "
            "data:image/...;base64,... with the file in base64",
            "wrong type",
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Fault(f"holds a data: address that is not base64 ({error})", "wrong type") from None


def kind_of(value: Any) -> str:
    """Name the type of a JSON value in plain words."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), type(value).__name__)
