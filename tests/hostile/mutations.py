"""Hypothesis strategies that damage files: JSON with impossible values, bytes cut and flipped."""

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# Values that a careless reader trips over: wrong types, negative, vast, deep, not finite, paths.
STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    10**7,
    10**12,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../etc/passwd",
    "/etc/passwd",
    "\x00",
    "\ud800",
    "os.system",
    [],
    [[]],
    [None],
    [1, 2],
    {},
    {"a": 1},
    {"": {"": []}},
    "x" * 10_000,
    [0] * 10_000,
]


# Fields that the libraries know and our files do not have.
EXTRA = [
    *("text_config", "vision_config", "decoder", "dtype", "torch_dtype", "attn_implementation"),
    *("_attn_implementation", "architectures", "auto_map", "layer_types", "rope_parameters"),
    *("partial_rotary_factor", "base_model_tp_plan", "_name_or_path", "device_map", "num_labels"),
    *("output_attentions", "return_dict", "is_decoder", "tie_encoder_decoder", "id2label"),
    *("max_length", "min_length", "num_beams", "num_return_sequences", "cache_implementation"),
    *("cache_config", "stop_strings", "watermarking_config", "prompt_lookup_num_tokens"),
    *("compile_config", "force_words_ids", "bad_words_ids", "temperature", "top_k", "do_sample"),
    *("guidance_scale", "max_time", "low_memory", "no_repeat_ngram_size", "sequence_bias"),
    *("tokenizer_file", "tokenizer_class", "vocab_file", "backend", "padding", "truncation"),
    *("chat_template", "crop_size", "patch_size", "extra_special_tokens", "model_max_length"),
    *("added_tokens_decoder", "additional_special_tokens", "processor_class", "size"),
    *("image_processor_type", "feature_extractor_type", "image_processor", "tokenizer"),
    *("do_resize", "resample", "data_format", "model_input_names", "clean_up_tokenization_spaces"),
    *("revision", "inference_mode", "task_type", "auto_mapping", "loftq_config", "eva_config"),
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "trainable_token_indices"),
    *("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"),
    *("target_parameters", "runtime_config", "lora_bias", "use_qalora", "qalora_group_size"),
    *("__metadata__", "__class__", "weight_map", "metadata"),
]


def compress(file: Path) -> None:
    """Compress the members of a pickle of torch, which never does so itself."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all members of nested dicts and lists, at most 3 of a list."""
    found: list[tuple[Any, ...]] = [path] if path else []
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())[:60]
    elif isinstance(value, list):
        items = list(enumerate(value[:3]))
    else:
        return found
    for key, member in items:
        found += places(member, (*path, key))
    return found


def change(content: Any, path: tuple[Any, ...], value: Any, *, remove: bool) -> Any:
    """Return a copy with one member replaced or taken out."""
    result = copy.deepcopy(content)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return result


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Give a JSON file in which one or two members are impossible, or whose bytes are damaged."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(content))
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        if not (found := places(value)):
            return json.dumps(
                {draw(st.sampled_from(EXTRA)): draw(st.sampled_from(STRANGE))}
            ).encode()
        strange = draw(st.sampled_from(STRANGE))
        if isinstance(value, dict) and draw(st.integers(0, 3)) == 0:
            value |= {draw(st.sampled_from(EXTRA)): strange}
            continue
        path = draw(st.sampled_from(found))
        value = change(value, path, strange, remove=draw(st.integers(0, 5)) == 0)
    return json.dumps(value).encode("utf-8")


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, repeat or overwrite some bytes; the beginning, where headers are, most often."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        limit = draw(st.sampled_from([8, 64, 1024, len(result)]))
        place = draw(st.integers(0, max(min(limit, len(result)) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "overwrite", "insert", "repeat"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "cut":
            del result[place:]
        elif kind == "overwrite":
            result[place : place + len(some)] = some
        elif kind == "insert":
            result[place:place] = some
        else:
            result[place:place] = result[place : place + 64]
    return bytes(result)


@st.composite
def damaged_header(draw: st.DrawFn, content: bytes) -> bytes:
    """Damage a safetensors file: its header's length, its header, or any bytes."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = draw(st.sampled_from(["json", "json", "length", "bytes", "cut"]))
    if kind == "bytes":
        return draw(damaged_bytes(content))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "length":
        lie = draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1]))
        return lie.to_bytes(8, "little") + header + data
    header = draw(damaged_json(header))
    return len(header).to_bytes(8, "little") + header + data
