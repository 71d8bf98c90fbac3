"""Turns a checked record into ids and labels before a pixel is made.

The tokens of every picture follow from its size alone, so headers of media are all that is read.
Training and inference share one rendering (`phi3v.model.text`), so every prompt of a conversation
has the ids that it has at inference. Letter: T tokens.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from phi3v.data.faults import Fault, as_fault
from phi3v.data.media import choose_frames, image_size
from phi3v.data.options import MediaOptions
from phi3v.data.records import Media, Record
from phi3v.data.turns import expand_tags
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.text import EncodedText, render_messages

IGNORE_INDEX = -100
_PUBLISHED = MediaOptions()


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
        picture_sizes: Width and height of every picture or frame in `media`.
        image_token_counts: Tokens of each of them.
        num_dropped_turns: Turns cut off at the end.
    """

    input_ids: list[int]
    labels: list[int]
    media: list[Media]
    picture_sizes: list[tuple[int, int]]
    image_token_counts: list[int]
    num_dropped_turns: int


def lay_out(
    record: Record,
    processor: Phi3VProcessor,
    max_seq_length: int,
    *,
    max_num_frames: int,
    media_options: MediaOptions = _PUBLISHED,
) -> Layout:
    """Render a record to ids and labels; only headers of media are read.

    Labels stand on every answer with its `<|end|>`, and on one `<|endoftext|>` at the very end. A
    conversation that is too long loses its last questions with their answers, so nothing is ever
    cut inside a picture or an answer.

    Args:
        record: A checked record.
        processor: Text and image processor of the checkpoint.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media_options: Which media may be opened, and how.

    Raises:
        SampleTooLong: If the first question and answer exceed the limit.
        FileNotFoundError: If a picture or video is missing.
        ValueError: If one is unreadable or too thin; all messages name the record.
    """
    media = [one for turn in record.turns for one in turn.media]
    with naming(record):
        sizes = [_picture_sizes(one, max_num_frames, media_options) for one in media]
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
        picture_sizes=[size for group in sizes[: len(kept_media)] for size in group],
        image_token_counts=[count for group in counts[: len(kept_media)] for count in group],
        num_dropped_turns=num_dropped_turns,
    )


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
def naming(record: Record) -> Iterator[None]:
    """Put the record's name in front of errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{record.name}: {error}") from error
    except ValueError as error:
        raise as_fault(error).named(f"{record.name}: {error}") from error


def _picture_sizes(
    media: Media, max_num_frames: int, options: MediaOptions
) -> list[tuple[int, int]]:
    """Width and height of every picture behind a tag, from the file's header."""
    if media.kind == "image":
        return [image_size(media.source, media.folder, options)]
    choice = choose_frames(media.source, max_num_frames, image_folder=media.folder, options=options)
    return [choice.size] * len(choice.indices)


def _count_tokens(
    media: Media, sizes: list[tuple[int, int]], processor: Phi3VProcessor
) -> list[int]:
    try:
        return [processor.image_processor.num_image_tokens(*size) for size in sizes]
    except ValueError as error:
        raise Fault(f"{media.path}: {error}", "too thin") from error
