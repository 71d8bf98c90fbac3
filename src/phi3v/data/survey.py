"""Inspects all records of a source, in several processes, and gathers what is known of them."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from phi3v.data.inspection import Finding, Inspection, InspectionSettings, inspect_record
from phi3v.data.records import RawRecords, describe_record
from phi3v.model.processing import Phi3VProcessor

_CHUNK = 32
# Below this a pool costs more than it saves.
_MIN_RECORDS_FOR_POOL = 256


@dataclass(frozen=True)
class Survey:
    """What is known of all R records; arrays are int64 (R,) unless said otherwise.

    Attributes:
        lengths: Tokens of each example; up to the first answer where that is too long; 0 if bad.
        num_supervised: Tokens with a label.
        num_dropped_turns: Turns that the length limit takes.
        num_pictures: Pictures and frames.
        num_crops: Crops of them, the global ones not counted.
        content_keys: uint64; equal for records of the same text and media, 0 if bad.
        picture_sizes: (P, 2) width and height of all pictures and frames.
        media_keys: uint64 (M,) of all media.
        media_counts: Media of each record.
        findings: What is wrong, in the order of the records.
    """

    lengths: np.ndarray
    num_supervised: np.ndarray
    num_dropped_turns: np.ndarray
    num_pictures: np.ndarray
    num_crops: np.ndarray
    content_keys: np.ndarray
    picture_sizes: np.ndarray
    media_keys: np.ndarray
    media_counts: np.ndarray
    findings: list[Finding]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def faults(self) -> list[Finding]:
        """What is wrong with the bad records, those left out that are only too long."""
        return [one for one in self.findings if one.is_bad and one.reason != "too long"]

    def listed(self) -> list[Finding]:
        """List the findings; one of a record that a weight repeats, once."""
        return list({one.messages: one for one in reversed(self.findings)}.values())[::-1]

    def num_distinct_crops(self) -> int:
        """Count the crops of usable records, the global ones too; equal media count once."""
        used = self.is_good() & (self.media_counts > 0)
        starts = np.concatenate([[0], np.cumsum(self.media_counts)])[:-1]
        has_media = self.media_counts > 0
        if not used.any():
            return 0
        order = np.arange(len(self.media_keys)) - np.repeat(starts, self.media_counts)
        mixed = self.media_keys * (2 * order.astype(np.uint64) + np.uint64(1))
        lists = np.zeros(len(self), np.uint64)
        lists[has_media] = np.add.reduceat(mixed, starts[has_media])
        _, first = np.unique(lists[used], return_index=True)
        return int((self.num_crops + self.num_pictures)[used][first].sum())

    def is_good(self) -> np.ndarray:
        """Tell which records training can use; bool (R,)."""
        good = np.ones(len(self), dtype=bool)
        good[[finding.index for finding in self.findings if finding.is_bad]] = False
        return good


@dataclass(frozen=True)
class _Job:
    """All that a process needs; module functions get it through `_start_worker`."""

    source: RawRecords
    processor: Phi3VProcessor
    settings: InspectionSettings

    def inspect(self, bounds: tuple[int, int]) -> list[Inspection]:
        one = (self.processor, self.settings)
        return [inspect_record(self.source, index, *one) for index in range(*bounds)]


# Set in worker processes only: a pool has no other way to give them what all their work needs.
_job: _Job | None = None


def survey_records(
    source: RawRecords,
    processor: Phi3VProcessor,
    settings: InspectionSettings,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Survey:
    """Inspect all records.

    Args:
        source: Raw records.
        processor: Text and image processor of the checkpoint.
        settings: What to look for.
        num_workers: Processes; None takes one for each core, and none for few records.
        progress: Called with the number of records that were just finished.

    Raises:
        KeyboardInterrupt: When interrupted; no process is left behind.
    """
    if num_workers is None:
        few = len(source) < _MIN_RECORDS_FOR_POOL
        num_workers = 1 if few else len(os.sched_getaffinity(0))
    job = _Job(source, processor, settings)
    chunks = [(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    results = map(job.inspect, chunks) if num_workers < 2 else _in_pool(job, chunks, num_workers)
    gathered = _Gatherer()
    for inspections in results:
        gathered.add(inspections)
        progress(len(inspections))
    return gathered.finish()


class _Gatherer:
    """Turns inspections into arrays chunk by chunk, so that millions of them fit."""

    def __init__(self) -> None:
        self._numbers: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._media_keys: list[np.ndarray] = []
        self._findings: list[Finding] = []

    def add(self, inspections: Sequence[Inspection]) -> None:
        rows = [
            (
                one.length,
                one.num_supervised,
                one.num_dropped_turns,
                len(one.picture_sizes),
                one.num_crops,
                len(one.media_keys),
            )
            for one in inspections
        ]
        self._numbers.append(np.array(rows, np.int64).reshape(-1, 6))
        sizes = [size for one in inspections for size in one.picture_sizes]
        self._sizes.append(np.array(sizes, np.int32).reshape(-1, 2))
        self._keys.append(np.array([one.content_key for one in inspections], np.uint64))
        keys = [key for one in inspections for key in one.media_keys]
        self._media_keys.append(np.array(keys, np.uint64))
        self._findings += [one.finding for one in inspections if one.finding is not None]

    def finish(self) -> Survey:
        numbers = np.concatenate(self._numbers or [np.zeros((0, 6), np.int64)]).T
        return Survey(
            lengths=numbers[0].copy(),
            num_supervised=numbers[1].copy(),
            num_dropped_turns=numbers[2].copy(),
            num_pictures=numbers[3].copy(),
            num_crops=numbers[4].copy(),
            content_keys=np.concatenate(self._keys or [np.zeros(0, np.uint64)]),
            picture_sizes=np.concatenate(self._sizes or [np.zeros((0, 2), np.int32)]),
            media_keys=np.concatenate(self._media_keys or [np.zeros(0, np.uint64)]),
            media_counts=numbers[5].copy(),
            findings=self._findings,
        )


def _in_pool(
    job: _Job, chunks: Sequence[tuple[int, int]], num_workers: int
) -> Iterator[list[Inspection]]:
    """Inspect chunks side by side; yields their results in order."""
    done = 0
    while done < len(chunks):
        pool = _open_pool(job, num_workers)
        try:
            for result in pool.map(_inspect, chunks[done:]):
                yield result
                done += 1
        except BrokenProcessPool:
            # A decoder brought its process down. Alone, the record that does so has a name.
            yield [_inspect_alone(job, index) for index in range(*chunks[done])]
            done += 1
        finally:
            pool.shutdown(cancel_futures=True)


def _inspect_alone(job: _Job, index: int) -> Inspection:
    with _open_pool(job, 1) as pool:
        try:
            return pool.submit(_inspect, (index, index + 1)).result()[0]
        except BrokenProcessPool:
            name = describe_record(index, job.source.place(index))
            message = f"{name}: the process that read it died; replace its picture or video"
            return Inspection(Finding(index, None, "crash", (message,)))


def _open_pool(job: _Job, num_workers: int) -> ProcessPoolExecutor:
    # Forked workers share the index and the tokenizer, and start at once.
    return ProcessPoolExecutor(num_workers, get_context("fork"), _start_worker, (job,))


def _start_worker(job: _Job) -> None:
    global _job
    _job = job
    # The first process alone answers Ctrl-C; otherwise each of them would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _inspect(bounds: tuple[int, int]) -> list[Inspection]:
    assert _job is not None
    return _job.inspect(bounds)
