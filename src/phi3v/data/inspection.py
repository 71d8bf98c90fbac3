"""Looks at one record as training will: its form, its media by their headers, its length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from phi3v.data.encoding import IGNORE_INDEX, Layout, SampleTooLong, lay_out
from phi3v.data.faults import Fault, FaultKind, as_fault
from phi3v.data.media import choose_frames, image_size, load_image, sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.paths import locate
from phi3v.data.records import RawRecords, Record, parse_record
from phi3v.data.truncated import looks_truncated
from phi3v.data.turns import Media
from phi3v.model.processing import Phi3VProcessor

Reason = FaultKind | Literal["shortened"]


@dataclass(frozen=True)
class InspectionSettings:
    """What records are inspected with.

    Attributes:
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media: Which media may be opened, and how.
        deep: Decode all media, not only those that look cut off.
    """

    max_seq_length: int = 131072
    max_num_frames: int = 10
    media: MediaOptions = MediaOptions()
    deep: bool = False


@dataclass(frozen=True)
class Finding:
    """Something to say about one record.

    Attributes:
        index: 0-based place in the file.
        record_id: The record's own id, None where it has none or cannot be read.
        reason: What is wrong, the first of several faults; "shortened": the record is good, and
            training leaves out its last turns.
        messages: What is wrong and what to do; each names the record.
    """

    index: int
    record_id: str | None
    reason: Reason
    messages: tuple[str, ...]

    @property
    def is_bad(self) -> bool:
        """Whether training cannot use the record."""
        return self.reason != "shortened"


@dataclass(frozen=True)
class Inspection:
    """What is known of one record.

    Attributes:
        finding: What is wrong with it, if anything is.
        length: Tokens of its example; of one too long, those up to its first answer; 0 if bad.
        num_supervised: Tokens with a label.
        num_dropped_turns: Turns that the length limit takes.
        picture_sizes: Width and height of every picture and frame of its example.
        num_crops: Crops of all of them, the global ones not counted.
        content_key: Equal for records of the same text and media; 0 if bad.
        media_keys: One for each medium.
    """

    finding: Finding | None = None
    length: int = 0
    num_supervised: int = 0
    num_dropped_turns: int = 0
    picture_sizes: Sequence[tuple[int, int]] = ()
    num_crops: int = 0
    content_key: int = 0
    media_keys: Sequence[int] = field(default=())


def inspect_record(
    source: RawRecords, index: int, processor: Phi3VProcessor, settings: InspectionSettings
) -> Inspection:
    """Look at one record; nothing that a user's data can do makes this raise.

    Args:
        source: Raw records.
        index: 0-based number of the record.
        processor: Text and image processor of the checkpoint.
        settings: What to look for.
    """
    try:
        raw = source[index]
    except ValueError as error:
        fault = as_fault(error)
        reason = "malformed JSON" if fault.kind == "other" else fault.kind
        return Inspection(Finding(index, None, reason, (str(error),)))
    record_id = str(raw["id"]) if isinstance(raw, dict) and raw.get("id") is not None else None
    try:
        record = parse_record(raw, source.place(index), source.image_folder(index))
    except ValueError as error:
        return Inspection(Finding(index, record_id, as_fault(error).kind, (str(error),)))
    too_long, faults = None, []
    try:
        layout = lay_out(
            record,
            processor,
            settings.max_seq_length,
            max_num_frames=settings.max_num_frames,
            media_options=settings.media,
        )
    except SampleTooLong as error:
        too_long = error
    except (ValueError, OSError) as error:
        faults = [as_fault(error)]
    # All media are looked at, not only the first bad one.
    faults = _media_faults(record, processor, settings, headers_are_read=not faults) or faults
    if faults:
        messages = (
            str(one) if str(one).startswith(record.name) else f"{record.name}: {one}"
            for one in faults
        )
        return Inspection(Finding(index, record_id, faults[0].kind, tuple(messages)))
    if too_long is not None:
        finding = Finding(index, record_id, "too long", (str(too_long),))
        return Inspection(finding, too_long.length)
    return _describe(record, index, record_id, layout, processor, settings)


def _describe(
    record: Record,
    index: int,
    record_id: str | None,
    layout: Layout,
    processor: Phi3VProcessor,
    settings: InspectionSettings,
) -> Inspection:
    finding = None
    if layout.num_dropped_turns:
        finding = Finding(
            index,
            record_id,
            "shortened",
            (
                f"{record.name}: longer than max_seq_length {settings.max_seq_length}; training "
                f"leaves out its last {layout.num_dropped_turns} turns and keeps "
                f"{len(layout.input_ids)} tokens; raise the limit, or split the record",
            ),
        )
    media = [one for turn in record.turns for one in turn.media]
    keys = [_media_key(one, settings) for one in media]
    said = (part for turn in record.turns for part in (turn.role, turn.text))
    images = processor.image_processor
    grids = [images.plan(*size).grid for size in layout.picture_sizes]
    return Inspection(
        finding=finding,
        length=len(layout.input_ids),
        num_supervised=sum(label != IGNORE_INDEX for label in layout.labels[1:]),
        num_dropped_turns=layout.num_dropped_turns,
        picture_sizes=layout.picture_sizes,
        num_crops=sum(grid.rows * grid.columns for grid in grids),
        content_key=_key([*said, *map(str, keys)]),
        media_keys=keys,
    )


def _media_faults(
    record: Record,
    processor: Phi3VProcessor,
    settings: InspectionSettings,
    *,
    headers_are_read: bool,
) -> list[Fault]:
    """List what is wrong with each medium of a record, not only with the first."""
    faults = []
    for one in dict.fromkeys(one for turn in record.turns for one in turn.media):
        try:
            file, _ = locate(one.source, one.folder, settings.media)
            is_suspect = settings.deep or looks_truncated(file)
            if is_suspect or not headers_are_read:
                _open_medium(one, processor, settings, decode=is_suspect)
        except (ValueError, OSError) as error:
            faults.append(as_fault(error))
    return faults


def _open_medium(
    one: Media, processor: Phi3VProcessor, settings: InspectionSettings, *, decode: bool
) -> None:
    folder, options = one.folder, settings.media
    if one.kind == "image":
        size = image_size(one.source, folder, options)
    else:
        size = choose_frames(
            one.source, settings.max_num_frames, image_folder=folder, options=options
        ).size
    try:
        processor.image_processor.num_image_tokens(*size)
    except ValueError as error:
        raise Fault(f"{one.path}: {error}", "too thin") from error
    if not decode:
        return
    if one.kind == "image":
        decoded = load_image(one.source, folder, options).size
    else:
        decoded = sample_frames(
            one.source, settings.max_num_frames, image_folder=folder, options=options
        )[0].size
    if decoded != size:
        raise Fault(
            f"{one.path} was decoded at {decoded[0]}x{decoded[1]}, another size than its header "
            "announces; write the file again",
            "damaged file",
        )


def _media_key(one: Media, settings: InspectionSettings) -> int:
    """Tell media apart by their place, or with `deep` by their bytes."""
    if one.content is not None:
        return _key([one.kind, one.content])
    if not settings.deep:
        return _key([one.kind, one.path, str(one.folder or "")])
    file, _ = locate(one.source, one.folder, settings.media)
    return _key([one.kind, file if isinstance(file, bytes) else file.read_bytes()])


def _key(parts: Iterable[str | bytes]) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    # 0 stands for a record that cannot be read.
    return int.from_bytes(digest.digest(), "little") or 1
