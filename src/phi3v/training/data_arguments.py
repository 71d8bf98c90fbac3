"""The arguments of ``phi3v train`` about records, pictures and videos."""

from dataclasses import dataclass, field
from typing import Literal

from phi3v.data.options import MAX_IMAGE_PIXELS


@dataclass
class DataArguments:
    """What to train on."""

    data_path: str = field(
        metadata={
            "help": "Training records: JSON, JSONL, parquet, tar shards, a data set, or a YAML "
            "list of several."
        }
    )
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that picture and video paths are relative to."},
    )
    eval_data_path: str | None = field(
        default=None,
        metadata={"help": "Validation records; evaluated every epoch unless --eval_strategy is."},
    )
    eval_image_folder: str | None = field(
        default=None, metadata={"help": "Folder of the validation media; default: --image_folder."}
    )
    num_crops: int = field(
        default=16, metadata={"help": "Largest number of crops of a picture, 1 to 16."}
    )
    cache_vision: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps what the frozen vision tower makes of each picture: from "
            "the second epoch on no picture is decoded and no tower run."
        },
    )
    max_num_frames: int = field(default=10, metadata={"help": "Largest number of video frames."})
    max_seq_length: int = field(
        default=131072,
        metadata={"help": "Longest sample in tokens; turns behind it are dropped and counted."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Walk through tar shards, parquet or JSON lines without an index, shared out "
            "over processes and workers, without end; needs --max_steps."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "With --streaming: records of a worker among which the next one is drawn."
        },
    )
    check_data: bool = field(
        default=True,
        metadata={
            "help": "Check all records and headers of media before the first step. The result is "
            "kept beside the data file: the next start takes it from there."
        },
    )
    on_bad_record: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "Stop at a record that cannot be used, or skip and count it."},
    )
    max_bad_records: int = field(
        default=100,
        metadata={
            "help": "With --on_bad_record skip: stop when more are left out by the check and "
            "skipped in all epochs together."
        },
    )
    exif_orientation: bool = field(
        default=False,
        metadata={"help": "Turn pictures upright by their EXIF tag; the published model does not."},
    )
    max_image_pixels: int = field(
        default=MAX_IMAGE_PIXELS, metadata={"help": "Refuse larger pictures unread."}
    )
    allow_urls: bool = field(
        default=False, metadata={"help": "Fetch media from http and https addresses."}
    )
    allow_absolute_paths: bool = field(
        default=False,
        metadata={"help": "Take absolute paths of media although --image_folder is given."},
    )
    jpeg_draft: bool = field(
        default=False,
        metadata={
            "help": "Decode large JPEG photos smaller: faster, approximately the same pixels."
        },
    )
