"""Small pictures of the samples that a report shows, taken while the data are at hand."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from phi3v.data.questions import Question, open_question

FOLDER = "gallery"
LARGEST_SIDE = 320
MOST_PICTURES = 3
NUM_WORST, NUM_CHANGED, NUM_RANDOM = 12, 12, 12


def choose_samples(
    samples: Sequence[Mapping[str, Any]], metric: str, *, seed: int = 0
) -> list[tuple[int, str]]:
    """Choose the samples worth looking at.

    Args:
        samples: Lines of samples.jsonl.
        metric: The metric that decides.
        seed: Draws those that show the usual case.

    Returns:
        Place among the samples and why it is shown; the worst first, then those whose answers got
        most better or worse beside the base, then some at random. No sample stands twice.
    """
    places = range(len(samples))
    worst = sorted(places, key=lambda place: samples[place]["scores"][metric])[:NUM_WORST]
    changes = {
        place: one["scores"][metric] - one["base_scores"][metric]
        for place, one in enumerate(samples)
        if "base_scores" in one
    }
    changed = sorted(
        (place for place in changes if changes[place]), key=lambda place: -abs(changes[place])
    )
    drawn = random.Random(seed).sample(places, min(NUM_RANDOM, len(samples)))
    best = max(one["scores"][metric] for one in samples)
    worst = [place for place in worst if samples[place]["scores"][metric] < best]
    chosen: dict[int, str] = {}
    for group, reason in (
        (worst, "worst"),
        (changed[:NUM_CHANGED], "changed"),
        (sorted(drawn), "drawn"),
    ):
        for place in group:
            chosen.setdefault(place, reason)
    return list(chosen.items())


def write_gallery(
    folder: Path,
    questions: Sequence[Question],
    samples: Sequence[dict[str, Any]],
    metric: str,
    *,
    max_num_frames: int = 10,
    seed: int = 0,
) -> None:
    """Write small JPEG files of the chosen samples, and note them in the samples.

    A sample gets "shown" (why) and "pictures" (paths from `folder`); at most three pictures or
    frames each. Files of an earlier gallery are replaced.

    Args:
        folder: Output folder of the evaluation.
        questions: One for each sample.
        samples: Lines of samples.jsonl; changed in place.
        metric: The metric that decides.
        max_num_frames: Most frames of a video.
        seed: Draws samples.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.jpg"):
        old.unlink()
    for place, reason in choose_samples(samples, metric, seed=seed):
        pictures = open_question(questions[place], max_num_frames=max_num_frames).pictures
        names = []
        for number, picture in enumerate(spread(pictures)):
            names.append(f"{FOLDER}/{place}-{number}.jpg")
            save_small(picture, folder / names[-1])
        samples[place] |= {
            "shown": reason,
            "pictures": names,
            "num_pictures": len(pictures),
        }


def spread(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Take at most three pictures, evenly from first to last."""
    if len(pictures) <= MOST_PICTURES:
        return list(pictures)
    step = (len(pictures) - 1) / (MOST_PICTURES - 1)
    return [pictures[round(number * step)] for number in range(MOST_PICTURES)]


def save_small(picture: Image.Image, path: Path) -> None:
    """Write a picture as a small JPEG file; nothing but its pixels goes along."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    small.save(path, "JPEG", quality=82, optimize=True)
