"""Chooses the frames that stand for a clip; plain arithmetic, no video is opened here."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

# A seek throws away what the decoder holds; measured at the cost of so many frames.
_SEEK_COST = 12


@dataclass(frozen=True)
class FrameChoice:
    """What is known of a clip without decoding it.

    Attributes:
        indices: Frames to take, see `frame_indices`.
        size: Width and height in pixels.
        num_frames: Frames that the container announces or holds.
        average_rate: Frames per second.
    """

    indices: list[int]
    size: tuple[int, int]
    num_frames: int
    average_rate: Fraction


def frame_indices(
    num_frames: int,
    average_rate: Fraction | float,
    max_num_frames: int,
    frames_per_second: float = 1.0,
) -> list[int]:
    """Choose the frames that stand for a clip: the one sampler of training and inference.

    Frames are taken at 0, 1, 2, ... seconds. If these are more than `max_num_frames`, so many are
    spread evenly over the whole clip, its first and last frame included.

    Args:
        num_frames: Frames in the clip, at least 1.
        average_rate: Frames per second of the clip.
        max_num_frames: Most frames to take, at least 1; of 1, the first frame is taken.
        frames_per_second: Frames to take per second.

    Returns:
        Ascending 0-based indices without repetition, at least one.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_frames < 1 or max_num_frames < 1 or average_rate <= 0 or frames_per_second <= 0:
        raise ValueError(
            f"cannot choose frames: num_frames {num_frames} and max_num_frames {max_num_frames} "
            f"must be at least 1, rates {average_rate} and {frames_per_second} above 0"
        )
    # A clip slower than the sampling rate gives every frame once, never one frame twice.
    step = max(Fraction(1), Fraction(average_rate) / Fraction(frames_per_second))
    if num_frames > step * max_num_frames:
        last = num_frames - 1
        gaps = max(1, max_num_frames - 1)
        return [(2 * k * last + gaps) // (2 * gaps) for k in range(max_num_frames)]
    count = -int(-num_frames // step)
    return [int(k * step) for k in range(count)]


def plan_runs(wanted: Sequence[int], keys: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Decide where to seek so that the fewest frames are decoded.

    Args:
        wanted: Ascending indices of frames.
        keys: Ascending indices of the frames that decoding can start at; the first is 0.

    Returns:
        Runs of decoding: the frame to start at, and the wanted frames of the run. A single run from
        0 means that no seek pays.
    """
    runs: list[tuple[int, list[int]]] = [(0, [])]
    position = 0
    for frame in wanted:
        key = keys[bisect_right(keys, frame) - 1]
        if key - position > _SEEK_COST:
            runs.append((key, []))
        runs[-1][1].append(frame)
        position = frame + 1
    return [run for run in runs if run[1]]
