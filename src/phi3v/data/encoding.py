"""Turns a checked record into an example: ids, labels and crops.

Ids and labels come from `phi3v.data.layout`. Letters: T tokens, C real crops, S crop size.
"""

from typing import NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phi3v.data.faults import Fault
from phi3v.data.features import FeatureCache
from phi3v.data.layout import IGNORE_INDEX, Layout, SampleTooLong, lay_out, naming
from phi3v.data.media import load_image, sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.records import Media, Record
from phi3v.model.processing import Phi3VProcessor

__all__ = ["IGNORE_INDEX", "Example", "Layout", "SampleTooLong", "encode_record", "lay_out"]

_PUBLISHED = MediaOptions()


class Example(TypedDict):
    """One training sample.

    Keys:
        input_ids: int64 (T,).
        labels: int64 (T,), -100 off the answers.
        pixel_values: uint8 (C, 3, S, S), the crops of all pictures in order; absent without any.
        image_features: Features of all crops instead, see `phi3v.data.features`.
        feature_key: Name of the entry that holds them, or will.
        image_sizes: Padded height and width of every picture.
        num_dropped_turns: Turns cut off at the end to keep within the length limit.
        record: Name of the record, for messages.
        is_bad: There if the example only stands in for a record that could not be read.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: NotRequired[Tensor]
    image_features: NotRequired[Tensor]
    feature_key: NotRequired[str]
    image_sizes: list[tuple[int, int]]
    num_dropped_turns: int
    record: NotRequired[str]
    is_bad: NotRequired[bool]


def encode_record(
    record: Record,
    processor: Phi3VProcessor,
    max_seq_length: int,
    *,
    max_num_frames: int,
    media_options: MediaOptions = _PUBLISHED,
    features: FeatureCache | None = None,
) -> Example:
    """Make the example of a record: `lay_out`, and the crops of all kept pictures.

    Args:
        record: A checked record.
        processor: Text and image processor of the checkpoint.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media_options: Which media may be opened, and how.
        features: Where features of pictures are kept; if all of the record's are there, no picture
            is opened.

    Raises:
        SampleTooLong: If the first question and answer exceed the limit.
        FileNotFoundError: If a picture or video is missing.
        ValueError: If one is unreadable; all messages name the record.
    """
    layout = lay_out(
        record,
        processor,
        max_seq_length,
        max_num_frames=max_num_frames,
        media_options=media_options,
    )
    key = ""
    if features is not None and layout.media:
        with naming(record):
            key = features.key(layout.media, layout.picture_sizes, media_options)
        plans = [processor.image_processor.plan(*size) for size in layout.picture_sizes]
        num_crops = sum(1 + plan.grid.rows * plan.grid.columns for plan in plans)
        stored = features.read(key, num_crops)
        if stored is not None:
            padded = [(plan.padded_height, plan.padded_width) for plan in plans]
            example = _without_pictures(layout, record, padded)
            example["image_features"], example["feature_key"] = stored, key
            return example
    crops: list[np.ndarray] = []
    image_sizes: list[tuple[int, int]] = []
    sizes = iter(layout.picture_sizes)
    with naming(record):
        for one in layout.media:
            if one.kind == "video":
                pictures = sample_frames(
                    one.source, max_num_frames, image_folder=one.folder, options=media_options
                )
            else:
                draft_size = None
                if media_options.jpeg_draft:
                    draft_size = _resized(layout.picture_sizes[len(crops)], processor)
                pictures = [
                    load_image(one.source, one.folder, media_options, draft_size=draft_size)
                ]
            for picture in pictures:
                pixels, size = _make_crops(picture, next(sizes), one, processor, media_options)
                crops.append(pixels)
                image_sizes.append(size)
    example = _without_pictures(layout, record, image_sizes)
    if key:
        example["feature_key"] = key
    if crops:
        joined = crops[0] if len(crops) == 1 else np.concatenate(crops)
        example["pixel_values"] = torch.from_numpy(joined)
    return example


def _without_pictures(
    layout: Layout, record: Record, image_sizes: list[tuple[int, int]]
) -> Example:
    return Example(
        input_ids=torch.tensor(layout.input_ids),
        labels=torch.tensor(layout.labels),
        image_sizes=image_sizes,
        num_dropped_turns=layout.num_dropped_turns,
        record=record.name,
    )


def _resized(size: tuple[int, int], processor: Phi3VProcessor) -> tuple[int, int]:
    """Width and height that a picture of this size is resized to."""
    plan = processor.image_processor.plan(*size)
    return plan.resized_width, plan.resized_height


def _make_crops(
    picture: Image.Image,
    size: tuple[int, int],
    media: Media,
    processor: Phi3VProcessor,
    options: MediaOptions,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut a decoded picture whose header announced `size`; see `Phi3VImageProcessor.prepare`."""
    images = processor.image_processor
    if picture.size == size or (options.jpeg_draft and media.kind == "image"):
        return images.prepare(picture, size)
    if images.num_image_tokens(*picture.size) != images.num_image_tokens(*size):
        raise Fault(
            f"{media.path} was decoded at {picture.width}x{picture.height}, another size "
            "than its header announces; write the file again",
            "damaged file",
        )
    return images.prepare(picture)
