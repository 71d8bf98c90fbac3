"""Patterns of file names: ``{000..012}``, ``{a,b}``, ``*``, ``?`` and ``[...]``."""

import glob
import re
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(text: str) -> bool:
    """Tell whether a name stands for several files."""
    return glob.has_magic(text) or _BRACES.search(text) is not None


def expand(text: str) -> list[Path]:
    """List the files of a pattern, sorted where it has wildcards.

    Raises:
        FileNotFoundError: If a file that braces name is missing, or wildcards match none.
        ValueError: If a range runs backwards.
    """
    files: list[Path] = []
    for name in expand_braces(text):
        if glob.has_magic(name):
            found = sorted(Path(one) for one in glob.glob(name))
            if not found:
                raise FileNotFoundError(f"no file matches {name}; check the pattern")
            files += found
        elif Path(name).is_file():
            files.append(Path(name))
        else:
            raise FileNotFoundError(f"{name} of the pattern {text} does not exist")
    return files


def expand_braces(text: str) -> list[str]:
    """List what the braces of a name stand for; the name itself if it has none.

    Raises:
        ValueError: If a range runs backwards.
    """
    match = _BRACES.search(text)
    if match is None:
        return [text]
    if found := _RANGE.fullmatch(match[1]):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ValueError(f"{text}: the range {match[0]} runs backwards; write {last}..{first}")
        choices = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    heads = (text[: match.start()] + choice for choice in choices)
    return [name for head in heads for name in expand_braces(head + text[match.end() :])]
