"""Pickles of ``torch.save``, which hold tensors here and never anything that is run."""

import struct
import zipfile
from pathlib import Path

import torch


def read_seed_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read the pickle of weights that adapter folders of the seed project hold.

    The original's second name of the token table is dropped.

    Raises:
        ValueError: As `read_tensors`.
    """
    return {name: value for name, value in read_tensors(file).items() if ".wte." not in name}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read a pickle of named tensors, mapped into memory; nothing in it is run.

    Raises:
        ValueError: The file is damaged, or holds something else than named tensors.
    """
    check_stored_plainly(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # The reader of a damaged file trips over nearly anything; a size out of its head is one.
    except Exception as error:
        raise _unreadable(file) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"{file} must hold named tensors and nothing else; save it again")
    # A tensor may show one stored number many times. Two names of one tensor are usual.
    if sum(value.nbytes for value in weights.values()) > 2 * file.stat().st_size:
        raise ValueError(f"{file} describes more than it holds; do not trust its source")
    return weights


def check_stored_plainly(file: Path) -> None:
    """Refuse a pickle that grows when it is read: compressed, or of an old form without a map.

    Raises:
        ValueError: The file is no archive of ``torch.save``, or a member is compressed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            plain = all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist())
            size = sum(one.file_size for one in archive.infolist())
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise _unreadable(file) from error
    if not plain or size > file.stat().st_size:
        raise ValueError(
            f"{file} cannot be read: its members are compressed, which torch.save never does; do "
            "not trust its source"
        )


def _unreadable(file: Path) -> ValueError:
    return ValueError(
        f"{file} cannot be read: it is damaged, or holds something else than tensors, and only "
        "tensors are read from a pickle; copy it again, or save the weights as safetensors"
    )
