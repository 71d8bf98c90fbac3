"""Puts prompts into batches: pictures to prompts, cutting, padding.

Letters: B rows, T tokens of the longest row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from phi3v.model.pictures import ImageLike


def pair_pictures(text: Any, images: Any) -> tuple[list[str], list[list[ImageLike]]]:
    """Bring one prompt or many, with their pictures, to lists of equal length.

    Args:
        text: One prompt or a list of prompts.
        images: For one prompt a picture or a flat list; for a list of prompts a list with the
            pictures of every prompt; None for no pictures at all.

    Raises:
        ValueError: If the shapes do not fit together, or an empty list stands for no pictures.
    """
    if isinstance(images, (list, tuple)) and not images:
        raise ValueError("images is an empty list; leave images out where there are none")
    if isinstance(text, str):
        if images is None:
            return [text], [[]]
        return [text], [list(images) if isinstance(images, (list, tuple)) else [images]]
    if not isinstance(text, (list, tuple)) or not all(isinstance(prompt, str) for prompt in text):
        raise ValueError(
            f"text is a {type(text).__name__}, expected a string or a list of strings; "
            "text comes first, then images"
        )
    if not text:
        raise ValueError("text is an empty list, expected at least one prompt")
    if images is None:
        return list(text), [[] for _ in text]
    nested = isinstance(images, (list, tuple)) and all(
        row is None or isinstance(row, (list, tuple)) for row in images
    )
    if not nested or len(images) != len(text):
        raise ValueError(
            f"for a list of {len(text)} prompts images must be a list of {len(text)} lists of "
            "pictures, one per prompt; an empty list for a prompt without pictures"
        )
    return list(text), [list(row or ()) for row in images]


def truncate_row(ids: list[int], max_length: int, image_token_id: int) -> list[int]:
    """Cut a row at its end, but never inside or before an image.

    Raises:
        ValueError: If the cut would lose places of an image.
    """
    if image_token_id in ids[max_length:]:
        raise ValueError(
            f"truncation to {max_length} tokens would cut an image of a prompt of {len(ids)} "
            "tokens; raise max_length, lower num_crops or leave out pictures"
        )
    return ids[:max_length]


def batch_rows(
    rows: Sequence[list[int]],
    pad_token_id: int,
    *,
    padding: bool | str,
    padding_side: str,
    max_length: int | None,
    return_tensors: str | None,
    multiple: int = 1,
) -> dict[str, Any]:
    """Pad rows of ids and put them into one batch.

    Args:
        rows: Ids of every prompt.
        pad_token_id: Id to pad with.
        padding: False, True, "longest" or "max_length".
        padding_side: "left" or "right".
        max_length: Length for "max_length".
        return_tensors: "pt", "np" or None for lists.
        multiple: Padded rows have a multiple of so many tokens.

    Returns:
        `input_ids` and `attention_mask` (B, T); the mask is 0 at padding.

    Raises:
        ValueError: If an option is unknown, max_length is missing, or rows of different length
            cannot be one tensor.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding is {padding!r}, expected True, False, 'longest', 'max_length'")
    if padding == "max_length" and max_length is None:
        raise ValueError("padding='max_length' needs max_length")
    target = 0
    if padding == "max_length":
        target = max_length or 0
    elif padding in (True, "longest"):
        target = max(len(row) for row in rows)
    target = -(-target // multiple) * multiple
    if return_tensors not in ("pt", "np", None):
        raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt', 'np' or None")
    ids, mask = [], []
    for row in rows:
        gap = max(target - len(row), 0)
        before, after = (gap, 0) if padding_side == "left" else (0, gap)
        ids.append([pad_token_id] * before + row + [pad_token_id] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if return_tensors is None:
        return batch
    if len({len(row) for row in ids}) > 1:
        raise ValueError("rows differ in length and cannot be one tensor; set padding=True")
    convert = torch.tensor if return_tensors == "pt" else np.array
    return {key: convert(value) for key, value in batch.items()}
