"""A stream of examples without end, for data sets that are passed through, not looked up.

Every process that reads (a worker of a rank) has its own share of the files, or, where these are
fewer than the readers, every n-th record. It passes through its share again and again, each time in
another order: files are shuffled, and records within a buffer. All of this follows from the seed,
so a run is resumed by walking to where it stopped, without reading the records on the way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from phi3v.data.encoding import Example
from phi3v.data.examples import ExampleMaker
from phi3v.data.records import Record, parse_record
from phi3v.data.streams import Item, StreamFile, stream_files
from phi3v.model.processing import Phi3VProcessor


@dataclass(frozen=True)
class StreamPosition:
    """Who reads, and from where on.

    Attributes:
        rank: Number of this process of the run.
        num_ranks: Processes of the run.
        batch_size: Examples of a batch of this process.
        num_batches: Batches that this process has been given in an earlier part of the run.
    """

    rank: int = 0
    num_ranks: int = 1
    batch_size: int = 1
    num_batches: int = 0


class StreamedExamples(ExampleMaker, IterableDataset[Example]):
    """Examples of files that are walked through.

    Args:
        data_path: See `phi3v.data.streams.stream_files`.
        processor: Text and image processor of the checkpoint.
        image_folder: Folder of the records' media; None if they are named by full paths.
        max_seq_length: Most tokens of an example; a longer one trains nothing.
        shuffle_buffer: Records among which the next one is drawn; 1 keeps the order of the files.
        seed: Decides all orders.
        position: Who reads, and from where on.
        **settings: Those of `ExampleMaker`.

    Raises:
        FileNotFoundError: If a file or the image folder does not exist.
        ValueError: If a file cannot be streamed.
    """

    def __init__(
        self,
        data_path: str | Path,
        processor: Phi3VProcessor,
        image_folder: str | Path | None = None,
        max_seq_length: int = 131072,
        *,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        position: StreamPosition | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(processor, max_seq_length, **settings)
        if image_folder is not None and not Path(image_folder).is_dir():
            raise FileNotFoundError(f"image folder {image_folder} does not exist; check the path")
        self.data_path = str(data_path)
        self.image_folder = image_folder
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.position = position or StreamPosition()
        self._files = stream_files(data_path, allow_urls=self.media_options.allow_urls)

    def __iter__(self) -> Iterator[Example]:
        worker, num_workers = 0, 1
        if (info := get_worker_info()) is not None:
            worker, num_workers = info.id, info.num_workers
        at = self.position
        # The loader takes a batch from each worker in turn, from the first one on: the first one
        # goes on for the one whose turn it was.
        worker = (worker + at.num_batches) % num_workers
        num_batches = max(0, -(-(at.num_batches - worker) // num_workers))
        reader, num_readers = at.rank * num_workers + worker, at.num_ranks * num_workers
        for item in self.items(reader, num_readers, skip=num_batches * at.batch_size):
            yield self.make(partial(self._read, item), long_is_bad=False)

    def items(self, reader: int, num_readers: int, *, skip: int = 0) -> Iterator[Item]:
        """Walk through the shares of one reader, pass after pass.

        Args:
            reader: Number of the reader.
            num_readers: All that read.
            skip: So many items are left out at the beginning.

        Raises:
            ValueError: If there are fewer records than readers.
        """
        left = skip
        for number in count():
            found = 0
            for item in self.one_pass(number, reader, num_readers, skip=left):
                found += 1
                if found > left:
                    yield item
            left = max(0, left - found)
            if not found:
                raise ValueError(
                    f"{self.data_path} holds fewer records than there are readers ({num_readers}: "
                    "processes x --dataloader_num_workers); use fewer, or leave --streaming out"
                )

    def one_pass(
        self, number: int, reader: int, num_readers: int, *, skip: int = 0
    ) -> Iterator[Item]:
        """Walk through the share of one reader once.

        Args:
            number: Which pass it is; decides the order, and which files the reader has.
            reader: Number of the reader.
            num_readers: All that read.
            skip: So many items at the beginning will not be read.
        """
        order = np.random.default_rng([self.seed, number]).permutation(len(self._files))
        files = [self._files[index] for index in order]
        own = _share(files, reader, num_readers, keep_from=skip)
        random = np.random.default_rng([self.seed, number, reader])
        return _shuffled(own, self.shuffle_buffer, random)

    def _read(self, item: Item) -> Record:
        return parse_record(item.read(), item.place, self.image_folder)


def _share(
    files: Sequence[StreamFile], reader: int, num_readers: int, keep_from: int
) -> Iterator[Item]:
    """Walk through the share of a reader; items from number `keep_from` on are fetched if it helps.

    Whole files are shared out if there are enough of them.
    """
    step = 1
    if len(files) >= num_readers:
        files = files[reader::num_readers]
    else:
        step = num_readers
    number = 0
    for file in files:
        for item in file.items():
            if number % step == (reader if step > 1 else 0):
                if file.keeps and number // step >= keep_from:
                    item.keep()
                yield item
            number += 1


def _shuffled(items: Iterator[Item], size: int, random: np.random.Generator) -> Iterator[Item]:
    """Draw each next item from a buffer that is filled up again."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        drawn = int(random.integers(size))
        yield buffer[drawn]
        buffer[drawn] = item
    for drawn in random.permutation(len(buffer)):
        yield buffer[drawn]
