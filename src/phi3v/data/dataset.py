"""The trainer's data set: records are read, checked and encoded example by example.

What a survey found before (see `phi3v.data.survey`) decides which records take part, and tells
their lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from torch.utils.data import Dataset

from phi3v.data.encoding import IGNORE_INDEX, Example, Layout, SampleTooLong, lay_out
from phi3v.data.examples import ExampleMaker, UnusableRecord
from phi3v.data.inspection import Finding
from phi3v.data.options import MediaOptions
from phi3v.data.records import RawRecords, Record, read_record
from phi3v.data.sources import open_records
from phi3v.data.survey import Survey
from phi3v.model.processing import Phi3VProcessor

__all__ = ["LeftOut", "SupervisedDataset", "UnusableRecord", "refuse"]

_MOST_ERRORS_SHOWN = 20
_PUBLISHED = MediaOptions()


@dataclass(frozen=True)
class LeftOut:
    """What a data set does not train on.

    Attributes:
        num_bad_records: Records that cannot be used.
        num_too_long: Records whose first answer already lies past the length limit.
        num_shortened: Records kept without their last turns.
        num_turns: Turns that these have lost together.
    """

    num_bad_records: int
    num_too_long: int
    num_shortened: int
    num_turns: int


class SupervisedDataset(ExampleMaker, Dataset[Example]):
    """Examples of a data file, in its order.

    Args:
        data_path: See `phi3v.data.sources.open_records`.
        processor: Text and image processor of the checkpoint.
        image_folder: Folder of the records' media; None if they are named by full paths.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media_options: Which media may be opened, and how.
        on_bad_record: What to do with a record that cannot be used: "error", or "skip", which
            puts an example without labels in its place.

    Attributes:
        raw: The raw records.
        num_bad_records: Those that `apply_survey` has left out.
        num_crops: Crops of each example with the global ones, once surveyed or measured.
        num_labels: Supervised tokens of each example, once surveyed or measured.

    Raises:
        FileNotFoundError: If the data file or the image folder does not exist.
        ValueError: If the file is not readable.
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
        super().__init__(
            processor,
            max_seq_length,
            max_num_frames=max_num_frames,
            media_options=media_options,
            on_bad_record=on_bad_record,
        )
        self.data_path = Path(data_path)
        self.image_folder = image_folder
        self.raw: RawRecords = open_records(data_path, image_folder)
        self._kept: np.ndarray | None = None
        self._lengths: np.ndarray | None = None
        self.num_crops: np.ndarray | None = None
        self.num_labels: np.ndarray | None = None
        self.num_distinct_crops = 0

    def __len__(self) -> int:
        return len(self.raw) if self._kept is None else len(self._kept)

    def __getitem__(self, position: int) -> Example:
        return self.make(lambda: self.record(position))

    def record(self, position: int) -> Record:
        """Give the checked record behind an example."""
        index = position if self._kept is None else int(self._kept[position])
        return read_record(self.raw, index)

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
        if self._lengths is None:
            self.measure()
        assert self._lengths is not None
        return self._lengths.tolist()

    def measure(self) -> None:
        """Count tokens, crops and labels of every example, where no survey has done so."""
        counts = np.zeros((3, len(self)), np.int32)
        for position in range(len(self)):
            try:
                layout = self.layout(position)
            except SampleTooLong as error:
                counts[0, position] = error.length
                continue
            grids = [self.processor.image_processor.plan(*s).grid for s in layout.picture_sizes]
            num_crops = sum(grid.rows * grid.columns + 1 for grid in grids)
            num_labels = len(layout.labels) - layout.labels.count(IGNORE_INDEX)
            counts[:, position] = len(layout.input_ids), num_crops, num_labels
        self._lengths, self.num_crops, self.num_labels = counts

    def apply_survey(self, survey: Survey) -> LeftOut:
        """Leave out what a survey found too long, and keep the lengths that it counted.

        Bad records are left out, too, if they are to be skipped.

        Args:
            survey: Of all records of the data file, made with the settings of this data set.

        Raises:
            ValueError: If records are bad (the first of them are listed), or nothing remains.
        """
        bad = survey.faults
        if bad and self.on_bad_record == "error":
            refuse(bad, len(survey), self.data_path)
        self.num_bad_records = len(bad)
        good = survey.is_good()
        if not good.any():
            raise ValueError(
                f"no record of {self.data_path} is good and short enough: "
                f"{survey.findings[0].messages[0]}"
            )
        if not good.all():
            self._kept = np.flatnonzero(good)
        self._lengths = survey.lengths[good].astype(np.int32)
        self.num_crops = (survey.num_crops + survey.num_pictures)[good].astype(np.int32)
        self.num_labels = survey.num_supervised[good].astype(np.int32)
        self.num_distinct_crops = survey.num_distinct_crops()
        return LeftOut(
            num_bad_records=len(bad),
            num_too_long=int((~good).sum()) - len(bad),
            num_shortened=int((survey.num_dropped_turns > 0).sum()),
            num_turns=int(survey.num_dropped_turns.sum()),
        )


def refuse(findings: Sequence[Finding], num_records: int, path: Path) -> NoReturn:
    """Refuse a data file with bad records in one message that lists the first of them.

    Raises:
        ValueError: Always.
    """
    messages = [message for one in findings for message in one.messages]
    more = len(messages) - _MOST_ERRORS_SHOWN
    listed = messages[:_MOST_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError(
        f"{path}: {len(findings)} of {num_records} records are bad\n  "
        + "\n  ".join([*listed, "phi3v check lists all, and writes the good ones"])
    )
