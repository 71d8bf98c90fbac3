"""``--cache_vision``: where the tower's features go, and how they get there."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from phi3v.data.dataset import SupervisedDataset
from phi3v.data.features import FeatureCache, fingerprint
from phi3v.data.packing import PackedDataset
from phi3v.model.arrangement import crop_places
from phi3v.model.backbone import Phi3VModel
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.vision import Phi3VImageEmbedding, image_grids
from phi3v.training.arguments import LoraArguments, ModelArguments, Phi3VTrainingArguments
from phi3v.training.data_arguments import DataArguments
from phi3v.training.feature_cost import say_cost
from phi3v.training.flags import RunArguments

logger = logging.getLogger(__name__)


def find_vision(model: nn.Module) -> Phi3VImageEmbedding:
    """Find the vision side in a bare or wrapped model.

    Raises:
        ValueError: It has none.
    """
    for one in model.modules():
        if isinstance(one, Phi3VImageEmbedding):
            return one
    raise ValueError("--cache_vision: this model has no vision tower; leave the flag out")


class FeatureWriter:
    """Stores what the tower gives for pictures that the cache lacks.

    Where an entry cannot be written, no more are: the run goes on and encodes what is missing.

    Args:
        cache: Where to.
        model: Bare or wrapped model.
    """

    def __init__(self, cache: FeatureCache, model: nn.Module) -> None:
        self.cache = cache
        self.vision = find_vision(model)
        self._writes = True
        self._outputs: list[Tensor] | None = None
        self.vision.img_processor.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if self._outputs is not None:
            self._outputs.append(output.detach())

    @contextmanager
    def storing(self, batch: dict[str, Any]) -> Iterator[None]:
        """Take the keys out of a batch, and store what its pictures were encoded to."""
        keys: list[tuple[str, int]] = batch.pop("feature_keys", [])
        sizes = batch.get("image_sizes", [])
        stored = batch.get("are_stored") or [False] * len(sizes)
        encoded = [size for size, one in zip(sizes, stored, strict=True) if not one]
        outputs = self._outputs = [] if keys and self._writes else None
        try:
            yield
        finally:
            self._outputs = None
        if outputs:
            try:
                self._store(torch.cat(outputs), encoded, keys)
            except OSError as error:
                self._writes = False
                # On every rank: only the one that failed knows.
                logger.error(
                    "--cache_vision: %s cannot be written to (%s); nothing more is stored, and "
                    "what is missing there is encoded in every epoch",
                    self.cache.folder,
                    error.strerror or error,
                )

    def _store(
        self, output: Tensor, sizes: Sequence[Sequence[int]], keys: Sequence[tuple[str, int]]
    ) -> None:
        """Split the features (K, P * P, D) by pictures and write the entry of every example."""
        grids = image_grids(sizes, self.vision.config.crop_size)
        places = crop_places(grids, [False] * len(grids))
        image = 0
        for key, num_images in keys:
            parts = []
            for (whole, first), grid in list(zip(places, grids, strict=True))[image:][:num_images]:
                others = output[first : first + grid.rows * grid.columns]
                parts += [output[whole : whole + 1], others]
            image += num_images
            self.cache.write(key, torch.cat(parts).to(self.cache.dtype))


def storing(writer: FeatureWriter | None, batch: dict[str, Any]) -> AbstractContextManager[None]:
    """Store what the pictures of a batch are encoded to meanwhile, where there is a cache."""
    return nullcontext() if writer is None else writer.storing(batch)


def attach_feature_cache(
    arguments: RunArguments,
    model: nn.Module,
    processor: Phi3VProcessor,
    train_set: Dataset,
    eval_set: SupervisedDataset | None = None,
) -> FeatureWriter | None:
    """Open the cache of a run's tower, and say how large it gets and whether it pays.

    Args:
        arguments: ``--cache_vision`` and what decides crops and types.
        model: Bare or wrapped model, cast to the types that it runs in.
        processor: Gives number and size of crops.
        train_set: Examples, or packs of them; they take features from the cache from now on.
        eval_set: So do these.

    Returns:
        What stores the features of further pictures, or None without the flag.

    Raises:
        ValueError: The folder cannot be made, or the model has no tower.
    """
    if arguments.data.cache_vision is None:
        return None
    cache = _open_cache(arguments, find_vision(model), processor)
    examples: Any = train_set.dataset if isinstance(train_set, PackedDataset) else train_set
    examples.features = cache
    num_crops = getattr(examples, "num_distinct_crops", 0)
    if eval_set is not None:
        eval_set.features = cache
        num_crops += eval_set.num_distinct_crops
    for module in model.modules():
        if isinstance(module, Phi3VModel):
            module.link_past_tower = True
    say_cost(arguments, find_vision(model), num_crops, train_set)
    return FeatureWriter(cache, model)


def _open_cache(
    arguments: RunArguments, vision: Phi3VImageEmbedding, processor: Phi3VProcessor
) -> FeatureCache:
    folder = str(arguments.data.cache_vision)
    config, images, training = vision.config, processor.image_processor, arguments.training
    tower = fingerprint(
        vision.img_processor.parameters(), config.num_vision_layers_used, vision.sub_GN.dtype,
        config._attn_implementation, training.bf16, training.fp16, training.device.type,
    )  # fmt: skip
    try:
        return FeatureCache(
            folder,
            tower,
            (config.vision.patches_per_side**2, config.vision.hidden_size),
            # The type that features are put into right behind the tower.
            vision.sub_GN.dtype,
            (images.num_crops, images.crop_size, arguments.data.max_num_frames),
        )
    except OSError as error:
        raise ValueError(
            f"--cache_vision {folder}: the folder cannot be made ({error.strerror or error}); "
            "name another one"
        ) from None


def check_feature_cache(
    model: ModelArguments,
    lora: LoraArguments,
    data: DataArguments,
    training: Phi3VTrainingArguments,
) -> None:
    """Refuse the cache for a tower that trains, or that lies in shards.

    Raises:
        ValueError: The tower trains or is sharded.
    """
    if not data.cache_vision:
        return
    if not model.freeze_vision_tower or lora.vision_lora:
        why = "--vision_lora" if lora.vision_lora else "--freeze_vision_tower False"
        raise ValueError(
            f"--cache_vision contradicts {why}: the features of a tower that trains change in "
            "every step; freeze it, or leave the cache out"
        )
    if training.shards_weights:
        why = "FSDP" if training.is_under_fsdp else "--deepspeed with ZeRO-3"
        raise ValueError(
            f"--cache_vision contradicts {why}: processes that share a tower must all run it; "
            "take ZeRO-2, or leave the cache out"
        )
