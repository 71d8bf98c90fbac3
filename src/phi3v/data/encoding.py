"""Turns a checked record into an example: ids, labels and crops.

The text side (`lay_out`) is finished before a pixel is made: the tokens of every picture follow
from its size alone. Training and inference share one rendering (`phi3v.model.text`), so every
prompt of a conversation has the ids that it has at inference. Letters: T tokens, C real crops,
S crop size.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from phi3v.data.media import choose_frames, image_size, load_image, sample_frames
from phi3v.data.records import Media, Record
from phi3v.data.turns import expand_tags
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.text import EncodedText, render_messages

IGNORE_INDEX = -100


class Example(TypedDict):
    """One training sample.

    Keys:
        input_ids: int64 (T,).
        labels: int64 (T,), -100 off the answers.
        pixel_values: uint8 (C, 3, S, S), the crops of all pictures in order; absent without any.
        image_sizes: Padded height and width of every picture.
        num_dropped_turns: Turns cut off at the end to keep within the length limit.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: NotRequired[Tensor]
    image_sizes: list[tuple[int, int]]
    num_dropped_turns: int


class SampleTooLong(ValueError):
    """A record whose first question and answer alone exceed the length limit.

    Attributes:
        length: Tokens that it would need, 0 where unknown.
    """

    # Constructible from its message alone: the data loader re-raises errors of workers so.
    def __init__(self, message: str, length: int = 0) -> None:
        super().__init__(message)
        self.length = length


@dataclass(frozen=True)
class Layout:
    """An example without its pixels.

    Attributes:
        input_ids: T ids, within the length limit.
        labels: T labels.
        media: Files of the turns that are kept, in order.
        image_token_counts: Tokens of every picture or frame in `media`.
        num_dropped_turns: Turns cut off at the end.
    """

    input_ids: list[int]
    labels: list[int]
    media: list[Media]
    image_token_counts: list[int]
    num_dropped_turns: int


def lay_out(
    record: Record,
    processor: Phi3VProcessor,
    image_folder: str | Path | None,
    max_seq_length: int,
    *,
    max_num_frames: int,
) -> Layout:
    """Render a record to ids and labels; only headers of media are read.

    Labels stand on every answer with its `<|end|>`, and on one `<|endoftext|>` at the very end. A
    conversation that is too long loses its last questions with their answers, so nothing is ever
    cut inside a picture or an answer.

    Args:
        record: A checked record.
        processor: Text and image processor of the checkpoint.
        image_folder: Folder of the record's media.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.

    Raises:
        SampleTooLong: If the first question and answer exceed the limit.
        FileNotFoundError: If a picture or video is missing.
        ValueError: If one is unreadable or too thin; all messages name the record.
    """
    media = [one for turn in record.turns for one in turn.media]
    with _naming(record):
        sizes = [_picture_sizes(one, image_folder, max_num_frames) for one in media]
        counts = [
            _count_tokens(one, size, processor) for one, size in zip(media, sizes, strict=True)
        ]
        text, answers = render_messages(expand_tags(record.turns, map(len, sizes)))
        encoded = processor.encode(text, [count for group in counts for count in group])
    labels, lengths = _label_answers(encoded, answers)
    num_kept = sum(length <= max_seq_length for length in lengths)
    if num_kept == 0:
        raise SampleTooLong(
            f"{record.name}: {lengths[0]} tokens up to its first answer, more than max_seq_length "
            f"{max_seq_length}; raise the limit, or lower num_crops or max_num_frames",
            lengths[0],
        )
    num_dropped_turns = 2 * (len(answers) - num_kept)
    kept_turns = record.turns[: len(record.turns) - num_dropped_turns]
    kept_media = [one for turn in kept_turns for one in turn.media]
    eos = processor.tokenizer.eos_token_id
    length = lengths[num_kept - 1] - 1
    return Layout(
        input_ids=[*encoded.input_ids[:length], eos],
        labels=[*labels[:length], eos],
        media=kept_media,
        image_token_counts=[count for group in counts[: len(kept_media)] for count in group],
        num_dropped_turns=num_dropped_turns,
    )


def encode_record(
    record: Record,
    processor: Phi3VProcessor,
    image_folder: str | Path | None,
    max_seq_length: int,
    *,
    max_num_frames: int,
) -> Example:
    """Make the example of a record: `lay_out`, and the crops of all kept pictures.

    Args:
        record: A checked record.
        processor: Text and image processor of the checkpoint.
        image_folder: Folder of the record's media.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.

    Raises:
        SampleTooLong: If the first question and answer exceed the limit.
        FileNotFoundError: If a picture or video is missing.
        ValueError: If one is unreadable; all messages name the record.
    """
    layout = lay_out(record, processor, image_folder, max_seq_length, max_num_frames=max_num_frames)
    image_processor = processor.image_processor
    crops: list[np.ndarray] = []
    image_sizes: list[tuple[int, int]] = []
    counts = iter(layout.image_token_counts)
    with _naming(record):
        for one in layout.media:
            for picture in _load_pictures(one, image_folder, max_num_frames):
                if image_processor.num_image_tokens(*picture.size) != next(counts):
                    raise ValueError(
                        f"{one.path} was decoded at {picture.width}x{picture.height}, another size "
                        "than its header announces; write the file again"
                    )
                pixels, size = image_processor.prepare(picture)
                crops.append(pixels)
                image_sizes.append(size)
    example = Example(
        input_ids=torch.tensor(layout.input_ids),
        labels=torch.tensor(layout.labels),
        image_sizes=image_sizes,
        num_dropped_turns=layout.num_dropped_turns,
    )
    if crops:
        example["pixel_values"] = torch.from_numpy(np.concatenate(crops))
    return example


def _label_answers(
    encoded: EncodedText, answers: list[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Label the answers of an encoded conversation.

    Returns:
        The label of every id, and for every answer the length of an example that ends with it.
    """
    starts = [start for start, _ in encoded.spans]
    labels = [IGNORE_INDEX] * len(starts)
    lengths = []
    for start, end in answers:
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        labels[first:last] = encoded.input_ids[first:last]
        # The newline behind the answer stays, and <|endoftext|> is added.
        lengths.append(bisect_left(starts, end + 1) + 1)
    return labels, lengths


@contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Put the record's name in front of errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{record.name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{record.name}: {error}") from error


def _picture_sizes(
    media: Media, image_folder: str | Path | None, max_num_frames: int
) -> list[tuple[int, int]]:
    """Width and height of every picture behind a tag, from the file's header."""
    if media.kind == "image":
        return [image_size(media.path, image_folder)]
    choice = choose_frames(media.path, max_num_frames, image_folder=image_folder)
    return [choice.size] * len(choice.indices)


def _load_pictures(
    media: Media, image_folder: str | Path | None, max_num_frames: int
) -> list[Image.Image]:
    if media.kind == "image":
        return [load_image(media.path, image_folder)]
    return sample_frames(media.path, max_num_frames, image_folder=image_folder)


def _count_tokens(
    media: Media, sizes: list[tuple[int, int]], processor: Phi3VProcessor
) -> list[int]:
    try:
        return [processor.image_processor.num_image_tokens(*size) for size in sizes]
    except ValueError as error:
        raise ValueError(f"{media.path}: {error}") from error
