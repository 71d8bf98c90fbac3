"""Comparing a config with the weights and the processor beside it.

A config from a stranger may describe a model of any size. Only names and shapes of the files are
read here, and one layer of each kind is built without memory, so that time and memory follow from
the files.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.processing import IMAGE_TOKEN, Phi3VProcessor
from phi3v.model.stored import Shape

_DECODER = "model.layers."
_TOWER = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers."


def check_fit(folder: Path, config: Phi3VConfig, stored: Mapping[str, Shape]) -> None:
    """Check that the files hold every weight that the config describes, in its shape.

    Args:
        folder: Checkpoint folder, for the message.
        config: Its configuration.
        stored: Names and shapes of the weights in its files.

    Raises:
        ValueError: Weights lack or have other shapes, or the sizes are impossible.
    """
    _check_depth(folder, "num_hidden_layers", config.num_hidden_layers, stored, _DECODER)
    if config.has_vision:
        depth = config.vision.num_hidden_layers
        _check_depth(folder, "clip_config num_hidden_layers", depth, stored, _TOWER)
    expected = _expected_shapes(folder, config)
    wrong = [name for name in expected if stored.get(name, expected[name]) != expected[name]]
    if wrong:
        raise ValueError(
            f"{folder} holds {len(wrong)} weights of other shapes than its config.json describes, "
            f"first {wrong[0]!r}: {stored[wrong[0]]} instead of {expected[wrong[0]]}; the two "
            "files belong to different models"
        )
    if missing := sorted(expected.keys() - stored.keys()):
        raise ValueError(
            f"{folder} lacks {len(missing)} of the model's weights, first {missing[0]!r}; the "
            "checkpoint is incomplete: copy or save it again"
        )


def check_processor_fits(path: str | Path, config: Phi3VConfig, processor: Phi3VProcessor) -> None:
    """Check that a processor makes the crops and ids that a model reads.

    Args:
        path: Folder of the processor, for the message.
        config: Configuration of the model.
        processor: The processor.

    Raises:
        ValueError: They belong to different models.
    """
    images = processor.image_processor
    facts = {"largest id": (max(processor.tokenizer.get_vocab().values()), config.vocab_size - 1)}
    if config.has_vision:
        facts |= {
            "crop_size": (images.crop_size, config.crop_size),
            "patch_size": (images.patch_size, config.patch_size),
            f"id of {IMAGE_TOKEN}": (processor.image_token_id, config.image_token_id),
        }
    for name, (found, expected) in facts.items():
        if found > expected or (found < expected and name != "largest id"):
            raise ValueError(
                f"the processor in {path} belongs to another model: its {name} is {found}, but the "
                f"model's config.json says {expected}; copy its files from the base model"
            )


def _expected_shapes(folder: Path, config: Phi3VConfig) -> dict[str, Shape]:
    """Build one layer of each kind on the meta device, and repeat its names."""
    depths = {_DECODER: config.num_hidden_layers}
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = 1
    if config.has_vision:
        depths[_TOWER] = config.vision.num_hidden_layers
        described = dict(config.img_processor or {})
        described["clip_config"] = described.get("clip_config", {}) | {"num_hidden_layers": 1}
        shallow.img_processor = described
    try:
        with torch.device("meta"):
            weights = Phi3VForCausalLM(shallow).state_dict()
    # Sizes of a stranger end in whatever a module trips over; nothing is read or run here.
    except Exception as error:
        raise ValueError(
            f"{folder / 'config.json'} describes an impossible model: {error}"
        ) from error
    shapes = {}
    for name, weight in weights.items():
        prefix = next((one for one in depths if name.startswith(f"{one}0.")), None)
        if prefix is None:
            shapes[name] = tuple(weight.shape)
            continue
        rest = name.removeprefix(f"{prefix}0.")
        shapes |= {
            f"{prefix}{layer}.{rest}": tuple(weight.shape) for layer in range(depths[prefix])
        }
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def _check_depth(
    folder: Path, field: str, depth: int, stored: Mapping[str, Shape], prefix: str
) -> None:
    """Refuse a config of more layers than are stored, so that listing them takes no time."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    found = len({match[1] for name in stored if (match := pattern.match(name))})
    if depth > found:
        raise ValueError(
            f"{folder} lacks weights: its config.json has {field} {depth}, but the files hold "
            f"{found} layers; the two belong to different models, or a file is missing"
        )
