"""Makes examples of records, and places that train nothing of those that cannot be used."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch

from phi3v.data.encoding import IGNORE_INDEX, Example, SampleTooLong, encode_record
from phi3v.data.features import FeatureCache
from phi3v.data.options import MediaOptions
from phi3v.data.records import Record
from phi3v.model.processing import Phi3VProcessor

logger = logging.getLogger(__name__)

_PUBLISHED = MediaOptions()


class UnusableRecord(ValueError):
    """A record that cannot become an example; the message names it."""

    # A loader's worker sends its traceback as the message, with the real one at its end.
    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class ExampleMaker:
    """Makes examples.

    Attributes:
        features: Where features of pictures are kept; None encodes them in every epoch.

    Args:
        processor: Text and image processor of the checkpoint.
        max_seq_length: Most tokens of an example.
        max_num_frames: Most frames of a video.
        media_options: Which media may be opened, and how.
        on_bad_record: What to do with a record that cannot be used: "error", or "skip", which
            puts an example without labels in its place.
    """

    def __init__(
        self,
        processor: Phi3VProcessor,
        max_seq_length: int = 131072,
        *,
        max_num_frames: int = 10,
        media_options: MediaOptions = _PUBLISHED,
        on_bad_record: Literal["error", "skip"] = "error",
    ) -> None:
        self.processor = processor
        self.max_seq_length = max_seq_length
        self.max_num_frames = max_num_frames
        self.media_options = media_options
        self.on_bad_record = on_bad_record
        self.num_bad_records = 0
        self.overview: dict[str, Any] | None = None
        self.features: FeatureCache | None = None

    def make(self, read: Callable[[], Record], *, long_is_bad: bool = True) -> Example:
        """Make the example of a record.

        Args:
            read: Reads and checks the record.
            long_is_bad: Treat a record whose first answer lies past the length limit as one that
                cannot be used; otherwise it takes a place that trains nothing.

        Raises:
            UnusableRecord: If it cannot be used and bad records are errors.
        """
        try:
            return encode_record(
                read(),
                self.processor,
                self.max_seq_length,
                max_num_frames=self.max_num_frames,
                media_options=self.media_options,
                features=self.features,
            )
        except (ValueError, OSError) as error:
            if isinstance(error, SampleTooLong) and not long_is_bad:
                logger.warning("left out: %s", error)
                return self.stand_in()
            if self.on_bad_record == "error":
                raise UnusableRecord(str(error)) from error
            # On every rank: only the one that met the record can name it.
            logger.error("skipped %s", error)
            example = self.stand_in()
            example["is_bad"] = True
            return example

    def stand_in(self) -> Example:
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
        )
