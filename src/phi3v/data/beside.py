"""Where the house keeps what it has learned about a data file: beside it, hidden, if it may."""

import hashlib
import os
import tempfile
from pathlib import Path


def hidden_places(path: Path, kind: str) -> list[Path]:
    """Name the files that may hold something about a data file, best first.

    Args:
        path: The data file.
        kind: What is kept, such as "index".
    """
    name = f".{path.name}.phi3v-{kind}"
    full = path.resolve()
    elsewhere = f"{hashlib.blake2b(os.fsencode(full), digest_size=8).hexdigest()}{name}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # The id of a data set on the hub looks like a path, too.
    beside = [full.parent / name] if full.parent.is_dir() else []
    return [
        *beside,
        cache / "phi3v" / elsewhere,
        Path(tempfile.gettempdir()) / f"phi3v-{os.getuid()}" / elsewhere,
    ]
