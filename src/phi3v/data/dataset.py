"""The trainer's data set: records are checked at once, media opened example by example."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import Dataset

from phi3v.data.encoding import (
    IGNORE_INDEX,
    Example,
    Layout,
    SampleTooLong,
    encode_record,
    lay_out,
)
from phi3v.data.options import MediaOptions
from phi3v.data.records import RawRecords, Record, read_record
from phi3v.data.sources import open_records
from phi3v.data.survey import Survey
from phi3v.model.processing import Phi3VProcessor

logger = logging.getLogger(__name__)

_MOST_ERRORS_SHOWN = 20
_PUBLISHED = MediaOptions()


@dataclass(frozen=True)
class TruncationCounts:
    """What the length limit took away.

    Attributes:
        num_dropped_samples: Records left out, as even their first answer lies past the limit.
        num_shortened_samples: Records kept without their last turns.
        num_dropped_turns: Turns that these have lost together.
    """

    num_dropped_samples: int
    num_shortened_samples: int
    num_dropped_turns: int


class SupervisedDataset(Dataset[Example]):
    """Examples of a data file, in its order.

    Args:
        data_path: JSON array or JSONL, see `phi3v.data.records`.
        processor: Text and image processor of the checkpoint.
        image_folder: Folder of the records' media; None if they are named by full paths.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media_options: Which media may be opened, and how.
        on_bad_record: What to do with a record that cannot be read any more: "error", or "skip",
            which puts an example without labels in its place.

    Raises:
        FileNotFoundError: If the data file or the image folder does not exist.
        ValueError: If the file is not readable or any record is bad; the first ones are listed.
    """

    def __init__(
        self,
        data_path: str | Path,
        processor: Phi3VProcessor,
        image_folder: str | Path | None = None,
        max_seq_length: int = 131072,
        *,
        max_num_frames: int = 10,
        media_options: MediaOptions = _PUBLISHED,
        on_bad_record: Literal["error", "skip"] = "error",
    ) -> None:
        if image_folder is not None and not Path(image_folder).is_dir():
            raise FileNotFoundError(
                f"image folder {image_folder} does not exist; give the folder that the paths in "
                f"{data_path} start from"
            )
        self.data_path = Path(data_path)
        self.processor = processor
        self.image_folder = image_folder
        self.max_seq_length = max_seq_length
        self.max_num_frames = max_num_frames
        self.media_options = media_options
        self.on_bad_record = on_bad_record
        self._lengths: list[int] | None = None
        self._raw = open_records(data_path, image_folder)
        _check_records(self._raw, self.data_path)
        self._kept = list(range(len(self._raw)))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, position: int) -> Example:
        try:
            return encode_record(
                self.record(position),
                self.processor,
                self.max_seq_length,
                max_num_frames=self.max_num_frames,
                media_options=self.media_options,
            )
        except (ValueError, OSError) as error:
            if self.on_bad_record == "error":
                raise
            logger.warning("skipped: %s", error)
            return self._stand_in()

    def _stand_in(self) -> Example:
        """Make an example that trains nothing.

        Its place in the order stays taken, so ranks make equally many steps and a resumed run goes
        on where the first one would have.
        """
        tokenizer = self.processor.tokenizer
        return Example(
            input_ids=torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id]),
            labels=torch.full((2,), IGNORE_INDEX),
            image_sizes=[],
            num_dropped_turns=0,
            is_bad=True,
        )

    def record(self, position: int) -> Record:
        """Give the checked record behind an example."""
        index = self._kept[position]
        return read_record(self._raw, index)

    def layout(self, position: int) -> Layout:
        """Give ids and labels of an example without its pixels; only headers of media are read."""
        return lay_out(
            self.record(position),
            self.processor,
            self.max_seq_length,
            max_num_frames=self.max_num_frames,
            media_options=self.media_options,
        )

    def lengths(self) -> list[int]:
        """Count the tokens of every example exactly, from headers of media only.

        An example that is too long counts with the tokens up to its first answer.
        """
        if self._lengths is not None:
            return list(self._lengths)
        lengths = []
        for position in range(len(self)):
            try:
                lengths.append(len(self.layout(position).input_ids))
            except SampleTooLong as error:
                lengths.append(error.length)
        return lengths

    def apply_survey(self, survey: Survey) -> TruncationCounts:
        """Leave out what a survey of the records found too long, and keep the lengths it counted.

        Args:
            survey: Of all records of the data file, made with the settings of this data set.

        Returns:
            What the length limit takes away.

        Raises:
            ValueError: If records are bad (the first of them are listed), or nothing remains.
        """
        bad = [one for one in survey.findings if one.is_bad and one.reason != "too_long"]
        if bad:
            refuse([message for one in bad for message in one.messages], len(bad), len(survey),
                   self.data_path)  # fmt: skip
        good = survey.is_good()
        if not good.any():
            raise ValueError(
                f"no record of {self.data_path} is short enough: {survey.findings[0].messages[0]}"
            )
        self._kept = good.nonzero()[0].tolist()
        self._lengths = survey.lengths[good].tolist()
        return TruncationCounts(
            num_dropped_samples=int((~good).sum()),
            num_shortened_samples=int((survey.num_dropped_turns > 0).sum()),
            num_dropped_turns=int(survey.num_dropped_turns.sum()),
        )

    def drop_too_long(self) -> TruncationCounts:
        """Leave out the records that cannot be brought within the length limit.

        Returns:
            What the limit takes away, the turns that are cut from kept records included.

        Raises:
            ValueError: If nothing remains.
        """
        kept, cut_turns = [], []
        for position, index in enumerate(self._kept):
            try:
                cut_turns.append(self.layout(position).num_dropped_turns)
                kept.append(index)
            except SampleTooLong as error:
                last_error = error
        if not kept:
            raise ValueError(f"no record of {self.data_path} is short enough: {last_error}")
        counts = TruncationCounts(
            num_dropped_samples=len(self._kept) - len(kept),
            num_shortened_samples=sum(cut > 0 for cut in cut_turns),
            num_dropped_turns=sum(cut_turns),
        )
        self._kept = kept
        return counts


def _check_records(raw: RawRecords, path: Path) -> None:
    """Refuse a file with bad records in one message that lists the first of them."""
    errors: list[str] = []
    num_bad = 0
    for index in range(len(raw)):
        try:
            read_record(raw, index)
        except ValueError as error:
            num_bad += 1
            if len(errors) < _MOST_ERRORS_SHOWN:
                errors.append(str(error))
    if num_bad:
        refuse(errors, num_bad, len(raw), path)


def refuse(messages: Sequence[str], num_bad: int, num_records: int, path: Path) -> None:
    """Refuse a file with bad records in one message that lists the first of them.

    Raises:
        ValueError: Always.
    """
    shown = list(messages[:_MOST_ERRORS_SHOWN])
    more = max(num_bad, len(messages)) - len(shown)
    rest = [f"and {more} more"] if more > 0 else []
    listed = "\n  ".join([*shown, *rest, "phi3v check lists all, and writes the good ones"])
    raise ValueError(f"{path}: {num_bad} of {num_records} records are bad\n  {listed}")
