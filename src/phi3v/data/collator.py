"""Joins examples into one batch: a row without padding, or padded rows.

Letters: B examples, T tokens, C crops, S crop size, L labels, M image tokens.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phi3v.data.encoding import IGNORE_INDEX, Example

Group = Sequence[Example]


class Collator:
    """Make batches of single examples or of packs.

    Args:
        pad_token_id: Id that fills up padded rows.
        image_token_id: Id of the places of pictures.
        padding_free: Put all examples behind one another in one row instead of padding them.
    """

    def __init__(
        self, pad_token_id: int, image_token_id: int, *, padding_free: bool = False
    ) -> None:
        self.pad_token_id = pad_token_id
        self.image_token_id = image_token_id
        self.padding_free = padding_free

    def __call__(self, examples: Sequence[Example] | Sequence[Sequence[Group]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: B examples with any number of pictures each; or packs, each a list of groups
                of examples, where the examples of a group begin alike.

        Returns:
            Padded on the right: ``input_ids`` and ``labels``, int64 (B, T), and
            ``document_lengths`` (B, 1). Without padding: ``input_ids`` and ``labels`` (1, T) and
            ``segments`` (see ``phi3v.model.segments``).
            Always ``label_places`` (L,), in the flattened row(s). If there are pictures:
            ``image_places`` (M,) likewise, ``pixel_values``, uint8 (C, 3, S, S), and
            ``image_sizes``, list of (height, width), of all pictures in row order. For the
            trainer, which takes them out: ``records``, their names, and ``num_bad_records``, if
            some could not be read.
        """
        if not examples:
            raise ValueError("a batch needs at least one example")
        if isinstance(examples[0], dict):
            groups: list[Group] = [[example] for example in examples]  # type: ignore[list-item]
        else:
            groups = [group for pack in examples for group in pack]  # type: ignore[misc]
            return pack_row(groups, self.image_token_id)
        if self.padding_free:
            return pack_row(groups, self.image_token_id)
        return self._pad(groups)

    def _pad(self, groups: Sequence[Group]) -> dict[str, Any]:
        examples = [example for group in groups for example in group]
        ids = [example["input_ids"] for example in examples]
        rows = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
        labels = pad_sequence(
            [example["labels"] for example in examples],
            batch_first=True,
            padding_value=IGNORE_INDEX,
        )
        predicted = labels != IGNORE_INDEX
        predicted[:, 0] = False
        return (
            {
                "input_ids": rows,
                "labels": labels,
                # Padding comes last, so that no token sees it: nothing needs a mask, for which
                # kernels would wait for the device.
                "document_lengths": torch.tensor([[len(row)] for row in ids]),
                "label_places": _places(predicted),
            }
            | _join_pictures(examples, rows == self.image_token_id)
            | _for_trainer(examples)
        )


def pack_row(groups: Sequence[Group], image_token_id: int) -> dict[str, Any]:
    """Put groups of examples behind one another in one row.

    The common beginning of a group's examples is there once; see ``common_prefix``.

    Args:
        groups: Groups of one or more examples.
        image_token_id: Id of the places of pictures.

    Returns:
        A batch without padding, as ``Collator`` describes it.
    """
    ids: list[Tensor] = []
    labels: list[Tensor] = []
    segments: list[tuple[int, int, int]] = []
    pictured: list[Example] = []
    start = 0
    for group in groups:
        prefix = common_prefix(group, image_token_id) if len(group) > 1 else 0
        prefix_start = start
        if prefix:
            ids.append(group[0]["input_ids"][:prefix])
            labels.append(torch.full((prefix,), IGNORE_INDEX))
            segments.append((prefix, 0, 0))
            start += prefix
        pictured += group[:1] if prefix else group
        for example in group:
            own = example["input_ids"][prefix:]
            ids.append(own)
            labels.append(example["labels"][prefix:].clone())
            # Nothing stands before a document: its first token is predicted by none.
            labels[-1][0] = IGNORE_INDEX
            segments.append((len(own), prefix_start if prefix else 0, prefix))
            start += len(own)
    row, row_labels = torch.cat(ids), torch.cat(labels)
    return (
        {
            "input_ids": row[None],
            "labels": row_labels[None],
            "segments": segments,
            "label_places": _places(row_labels != IGNORE_INDEX),
        }
        | _join_pictures(pictured, row == image_token_id)
        | _for_trainer(one for group in groups for one in group)
    )


def common_prefix(group: Group, image_token_id: int) -> int:
    """Count the tokens that all examples of a group begin with and that none of them is trained on.

    Pictures are shared only as a whole: where the examples hold different ones, or one of them has
        a picture behind
    the common beginning, nothing is shared.

    Args:
        group: Two or more examples.
        image_token_id: Id of the places of pictures.

    Returns:
        Length of the prefix in tokens, at least one token short of every example's first label; 0
        to share nothing.
    """
    shortest = min(len(example["input_ids"]) for example in group)
    stacked = torch.stack([example["input_ids"][:shortest] for example in group])
    differs = (stacked != stacked[0]).any(dim=0).nonzero()
    length = int(differs[0]) if len(differs) else shortest
    for example in group:
        labelled = (example["labels"] != IGNORE_INDEX).nonzero()
        first = int(labelled[0]) if len(labelled) else len(example["labels"])
        length = min(length, first - 1)
    if length < 1 or not _same_pictures(group):
        return 0
    rest = torch.cat([example["input_ids"][length:] for example in group])
    return 0 if bool((rest == image_token_id).any()) else length


def _same_pictures(group: Group) -> bool:
    first = group[0]
    for example in group[1:]:
        if example["image_sizes"] != first["image_sizes"]:
            return False
        if "feature_key" in first:
            # Another process may store an entry between two looks for it.
            if example.get("feature_key") != first["feature_key"]:
                return False
            continue
        pixels = example.get("pixel_values"), first.get("pixel_values")
        if pixels[0] is not pixels[1] and not (
            pixels[0] is not None and pixels[1] is not None and torch.equal(pixels[0], pixels[1])
        ):
            return False
    return True


def _for_trainer(examples: Iterable[Example]) -> dict[str, Any]:
    """Collect what the trainer takes out of a batch before the model gets it."""
    listed = list(examples)
    num_bad = sum(example.get("is_bad", False) for example in listed)
    names = [example["record"] for example in listed if "record" in example]
    return ({"records": names} if names else {}) | ({"num_bad_records": num_bad} if num_bad else {})


def _places(wanted: Tensor) -> Tensor:
    """List the places of a mask in the flattened rows; on the CPU, where nobody has to wait."""
    return wanted.flatten().nonzero()[:, 0]


def _join_pictures(examples: Sequence[Example], image_places: Tensor) -> dict[str, Any]:
    pictured = [example for example in examples if example["image_sizes"]]
    if not pictured:
        return {}
    batch: dict[str, Any] = {
        "image_sizes": [size for example in pictured for size in example["image_sizes"]],
        "image_places": _places(image_places),
    }
    for name in ("pixel_values", "image_features"):
        parts = [example[name] for example in pictured if name in example]
        if parts:
            batch[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    if "image_features" in batch:
        batch["are_stored"] = [
            "image_features" in example for example in pictured for _ in example["image_sizes"]
        ]
    missing = [one for one in pictured if "feature_key" in one and "pixel_values" in one]
    if missing:
        batch["feature_keys"] = [(one["feature_key"], len(one["image_sizes"])) for one in missing]
    return batch
