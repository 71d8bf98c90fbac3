"""Numbers about a data set, from a survey of its records. Letter: R records."""

from collections import defaultdict
from typing import Any

import numpy as np

from phi3v.data.packing import plan_packs
from phi3v.data.survey import Survey

_MOST_GROUPS = 20


def describe(values: np.ndarray) -> dict[str, float]:
    """Sum up numbers: count, total, mean, least, quantiles, largest."""
    if not len(values):
        return {"count": 0, "total": 0}
    quantiles = np.quantile(values, [0.5, 0.95, 0.99], method="inverted_cdf")
    return {
        "count": len(values),
        "total": int(values.sum()),
        "mean": round(float(values.mean()), 2),
        "min": int(values.min()),
        "p50": int(quantiles[0]),
        "p95": int(quantiles[1]),
        "p99": int(quantiles[2]),
        "max": int(values.max()),
    }


def padding_shares(
    lengths: np.ndarray, batch_size: int, pack_tokens: int, seed: int = 0
) -> dict[str, float]:
    """Compare what is wasted by padding random batches and by filling packs.

    Args:
        lengths: Tokens of every example.
        batch_size: Examples of a padded batch.
        pack_tokens: Room of a pack; a longer example has a pack of its own.
        seed: Draws the batches and the packs.

    Returns:
        Shares of all places that hold no token, 0 to 1.
    """
    if not len(lengths):
        return {"padded": 0.0, "packed": 0.0}
    order = np.random.default_rng(seed).permutation(lengths)
    starts = np.arange(0, len(order), batch_size)
    sizes = np.diff(np.append(starts, len(order)))
    places = int((np.maximum.reduceat(order, starts) * sizes).sum())
    tokens = int(lengths.sum())
    packs = plan_packs(lengths, pack_tokens, seed=seed)
    room = int(np.maximum(packs.sums(lengths), pack_tokens).sum())
    return {"padded": round(1 - tokens / places, 4), "packed": round(1 - tokens / room, 4)}


def duplicate_groups(survey: Survey) -> tuple[int, list[list[int]]]:
    """Find records of the same text and media.

    Returns:
        How many records repeat an earlier one, and the indices of the first groups.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    good = survey.content_keys != 0
    keys, counts = np.unique(survey.content_keys[good], return_counts=True)
    repeated = keys[counts > 1]
    for index in np.flatnonzero(np.isin(survey.content_keys, repeated) & good):
        groups[int(survey.content_keys[index])].append(int(index))
    num_repeats = int((counts - 1).sum())
    return num_repeats, sorted(groups.values())[:_MOST_GROUPS]


def overlap(training: Survey, validation: Survey) -> dict[str, Any]:
    """Find validation records that training has seen.

    Returns:
        Number of the validation records that training holds as they are, indices of the first of
        them, and number of those that share a picture or video with training.
    """
    seen = np.isin(validation.content_keys, training.content_keys)
    seen &= validation.content_keys != 0
    owners = np.repeat(np.arange(len(validation)), validation.media_counts)
    shared = owners[np.isin(validation.media_keys, training.media_keys)]
    return {
        "identical_records": int(seen.sum()),
        "first_indices": np.flatnonzero(seen)[:_MOST_GROUPS].tolist(),
        "records_with_shared_media": len(np.unique(shared)),
    }


def overview(survey: Survey) -> dict[str, Any]:
    """Count what a data set holds: names and numbers, ready for JSON.

    Lengths are those of good records.
    """
    good = survey.is_good()
    reasons = [finding.reason for finding in survey.findings]
    widths, heights = survey.picture_sizes.T
    return {
        "records": len(survey),
        "good": int(good.sum()),
        "bad": int((~good).sum()),
        "findings": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "tokens": describe(survey.lengths[good]),
        "supervised_tokens": describe(survey.num_supervised[good]),
        "pictures_per_record": describe(survey.num_pictures[good]),
        "crops_per_record": describe(survey.num_crops[good]),
        "picture_width": describe(widths),
        "picture_height": describe(heights),
    }


def statistics(
    survey: Survey, *, max_seq_length: int, rotary_switch: int, batch_size: int, pack_tokens: int
) -> dict[str, Any]:
    """Gather all numbers of a survey.

    Args:
        survey: Of the training records.
        max_seq_length: Limit that was surveyed with.
        rotary_switch: Documents longer than this use the long rotary factors.
        batch_size: For the share of padding.
        pack_tokens: For the share that packing leaves empty.

    Returns:
        Names and numbers, ready for JSON. Lengths are those of good records.
    """
    lengths = survey.lengths[survey.is_good()]
    num_repeats, groups = duplicate_groups(survey)
    reasons = [finding.reason for finding in survey.findings]
    return {
        **overview(survey),
        "max_seq_length": max_seq_length,
        "over_max_seq_length": reasons.count("too long") + reasons.count("shortened"),
        "dropped_records": reasons.count("too long"),
        "shortened_records": reasons.count("shortened"),
        "rotary_switch": rotary_switch,
        "over_rotary_switch": int((lengths > rotary_switch).sum()),
        "waste": {
            "batch_size": batch_size,
            "pack_tokens": pack_tokens,
            **padding_shares(lengths, batch_size, pack_tokens),
        },
        "duplicates": {"repeats": num_repeats, "groups": groups},
    }
