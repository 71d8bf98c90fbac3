"""Writing folders that are whole or not there, whenever the process or the machine stops.

A folder is written aside, sealed by a manifest, synced to the disk and then renamed. The manifest
names every file with its size and digest, so that a torn or altered copy is found later.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

MANIFEST = "manifest.json"
_CHUNK = 1 << 23
_THREADS = 8


def file_digest(path: Path, hashed: Any = xxh3_128) -> str:
    """Digest a file in chunks, several at a time, as fast as it is read.

    It finds what was torn or altered by accident; nobody who wants to deceive is kept from it.
    """
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:
        size = os.fstat(file.fileno()).st_size

        def of_chunk(start: int) -> bytes:
            return hashed(os.pread(file.fileno(), _CHUNK, start)).digest()

        whole = hashed()
        for part in pool.map(of_chunk, range(0, size, _CHUNK)):
            whole.update(part)
    return whole.hexdigest()


def _hash_of(digest: str) -> Any:
    """Tell what made a digest; manifests of the first days have longer ones."""
    return functools.partial(blake2b, digest_size=32) if len(digest) == 64 else xxh3_128


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it holds either the old or the new text, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring all files of a folder, and their names, onto the disk."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            sync_file(path)


def sync_file(path: Path) -> None:
    """Bring one file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def seal(folder: Path) -> None:
    """Write the manifest of a finished folder, and sync all of it.

    The disk takes the files while they are read for their digests.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    paths = list(_files(folder))
    with ThreadPoolExecutor(1) as reader:
        digests = reader.map(file_digest, paths)
        sync_folder(folder)
        files = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "digest": digest}
            for path, digest in zip(paths, digests, strict=True)
        }
    manifest = {"format": 1, "files": files}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    sync_file(folder)


def is_sealed(folder: Path) -> bool:
    """Say whether a folder has a manifest; one from elsewhere has none."""
    return (folder / MANIFEST).is_file()


def find_damage(folder: Path, *, digests: bool = False, suffix: str = "") -> str | None:
    """Compare a sealed folder with its manifest.

    Args:
        folder: A folder with a manifest.
        digests: Read the files too, not only their sizes.
        suffix: Look only at files whose names end so.

    Returns:
        What is wrong first, or None. Files that the manifest does not name do no harm.
    """
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): one for name, one in manifest["files"].items()}
        for name, one in expected.items():
            if not name.endswith(suffix):
                continue
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != one["size"]:
                return f"{name} has {size:,} bytes instead of {one['size']:,}"
            if digests and file_digest(path, _hash_of(one["digest"])) != one["digest"]:
                return f"{name} has other contents than those written"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be used: {type(error).__name__}: {error}"
    return None


def check_sealed_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not those that its manifest names.

    Folders of other programs have no manifest and pass; other files may be edited.

    Raises:
        ValueError: Weights are missing or cut off.
    """
    if is_sealed(folder) and (damage := find_damage(folder, suffix=".safetensors")):
        raise ValueError(
            f"{folder} is incomplete or damaged: {damage}; copy or save it again. If you changed "
            f"the weights on purpose, remove its {MANIFEST}"
        )


def put_in_place(folder: Path, target: Path, attic: Path) -> None:
    """Give a sealed folder its name; one that is already there is replaced.

    Args:
        folder: The sealed folder, on the same file system.
        target: Its name from now on.
        attic: Folder to move a former target to before it is removed.
    """
    former = _move_away(target, attic) if target.exists() else None
    folder.rename(target)
    sync_file(target.parent)
    if former is not None:
        shutil.rmtree(former)


def remove_folder(folder: Path, attic: Path) -> None:
    """Remove a folder so that a half-removed one never stands under its name."""
    shutil.rmtree(_move_away(folder, attic))


def _move_away(folder: Path, attic: Path) -> Path:
    attic.mkdir(parents=True, exist_ok=True)
    doomed = attic / f"removed-{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    sync_file(folder.parent)
    return doomed
