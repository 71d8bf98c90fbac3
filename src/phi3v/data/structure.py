"""Follows the structure of JSON text without making objects of it."""

import json
import re

import numpy as np

SPACE = b" \t\r\n"
_STRUCTURE = bytes(byte in b'"\\{}[]' for byte in range(256))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"{[")] = 1
_STEP[list(b"}]")] = -1
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,"\[\]{}]+', re.DOTALL)


def is_json(text: bytes | bytearray) -> bool:
    """Tell whether `text` is one JSON value."""
    try:
        json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


class Structure:
    """Follows strings and brackets from chunk to chunk, from inside an array on."""

    def __init__(self) -> None:
        self._depth = 1
        self._in_string = 0

    def feed(self, chunk: bytes) -> tuple[list[int], list[int]]:
        """Find the brackets of the two outer levels that stand outside strings.

        Returns:
            Their offsets in `chunk`, and the depth behind each: 2 opens an entry, 1 closes it, 0
            closes the array.
        """
        places = np.flatnonzero(np.frombuffer(chunk.translate(_STRUCTURE), np.bool_))
        if not len(places):
            return [], []
        bytes_there = np.frombuffer(chunk, np.uint8)[places]
        quotes = bytes_there == ord('"')
        quotes[_escaped(places, bytes_there)] = False
        in_string = (np.cumsum(quotes, dtype=np.int32) + self._in_string) & 1
        self._in_string = int(in_string[-1])
        steps = _STEP[bytes_there]
        outside = (steps != 0) & (in_string == 0)
        steps, places = steps[outside], places[outside]
        depths = np.cumsum(steps, dtype=np.int32) + self._depth
        if len(depths):
            self._depth = int(depths[-1])
        outer = ((depths == 2) & (steps > 0)) | ((depths < 2) & (steps < 0))
        return places[outer].tolist(), depths[outer].tolist()


def _escaped(places: np.ndarray, bytes_there: np.ndarray) -> np.ndarray:
    """Give the positions in `places` of the bytes that a backslash escapes."""
    backslashes = np.flatnonzero(bytes_there == ord("\\"))
    if not len(backslashes):
        return backslashes
    at = places[backslashes]
    run_starts = np.where(np.diff(at, prepend=-2) != 1, at, 0)
    # Of a run of backslashes, the first, third, ... escape what follows them.
    active = (at - np.maximum.accumulate(run_starts)) % 2 == 0
    following = backslashes[active] + 1
    inside = following < len(places)
    following, expected = following[inside], at[active][inside] + 1
    return following[places[following] == expected]


def split_scalars(text: bytes, *, fresh: bool, closing: bool) -> list[tuple[int, int, bool]] | None:
    """Split the entries of an array that are neither objects nor arrays.

    Args:
        text: What stands between two brackets.
        fresh: No entry and so no comma stands before `text`.
        closing: The array ends behind `text`, so no comma does.

    Returns:
        Start and end in `text` and whether it is JSON, of every entry; None if there are none, or
        commas and entries do not alternate.
    """
    found = []
    place, comma_next = 0, not fresh
    while place < len(text):
        if text[place] in SPACE:
            place += 1
        elif comma_next:
            if text[place] != ord(","):
                return None
            place, comma_next = place + 1, False
        elif match := _SCALAR.match(text, place):
            found.append((place, match.end(), is_json(match.group())))
            place, comma_next = match.end(), True
        else:
            return None
    return found if found and comma_next == closing else None
