"""The flags of ``phi3v evaluate``, and their contradictions."""

import argparse
from pathlib import Path
from typing import Any

from phi3v.evaluation.metrics import METRICS, check_names
from phi3v.model.flags import add_flag, add_model_flags, check_model_flags
from phi3v.model.loading import is_adapter_folder

AUTO = "auto"


def build_parser() -> argparse.ArgumentParser:
    """Describe the flags; each may be written with hyphens or with underscores."""
    metrics = ", ".join(METRICS)
    parser = argparse.ArgumentParser(
        prog="phi3v evaluate",
        description="Let a model answer the questions of a data set and score the answers. Give "
        "the same command again to go on after a stop. On several GPUs: torchrun "
        "--nproc-per-node 8 -m phi3v evaluate ...",
        epilog=f"Metrics: {metrics}. Flags may be written with underscores, too (--model_path).",
        allow_abbrev=False,
    )
    add_model_flags(parser, is_required=False)
    data = parser.add_argument_group("the questions")
    add_flag(data, "data-path", required=True, help="records as for training, or with 'prompt'; "
             "right answers: the last turn, or a list under 'reference' or 'answers'")  # fmt: skip
    add_flag(data, "image-folder", help="folder of the media; default: paths as they are")
    add_flag(data, "turns", choices=["last", "all"], default="last",
             help="ask the last question of a record, or each of them (%(default)s)")  # fmt: skip
    add_flag(data, "limit", type=int, help="ask so many questions, drawn by --seed")
    add_flag(data, "system", help="system turn for records that have none")
    add_flag(data, "max-frames", type=int, default=10, help="most frames of a video (%(default)s)")
    answers = parser.add_argument_group("the answers")
    add_flag(answers, "max-new-tokens", type=int, default=128, help="most tokens (%(default)s)")
    add_flag(answers, "batch-size", type=int, default=8,
             help="questions answered together (%(default)s)")  # fmt: skip
    add_flag(answers, "num-beams", type=int, default=1, help="beams of a beam search (%(default)s)")
    add_flag(answers, "repetition-penalty", type=float, default=1.0, help="(%(default)s)")
    add_flag(answers, "compare-base", action="store_true",
             help="answer with the adapter switched off, too, and compare")  # fmt: skip
    add_flag(answers, "predictions", metavar="JSONL",
             help="score these answers (lines with id and answer); no model is loaded")  # fmt: skip
    add_flag(answers, "base-predictions", metavar="JSONL",
             help="answers to compare with: samples.jsonl of another evaluation")  # fmt: skip
    scores = parser.add_argument_group("the scores")
    add_flag(scores, "metrics", nargs="+", default=[AUTO], metavar="NAME",
             help="names, or auto: by looking at the right answers (auto)")  # fmt: skip
    add_flag(scores, "seed", type=int, default=0,
             help="of --limit and the resamples of the intervals (%(default)s)")  # fmt: skip
    add_flag(scores, "output", metavar="FOLDER",
             help="default: evaluation/NAME OF THE DATA in --model-path")  # fmt: skip
    add_flag(scores, "overwrite", action="store_true", help="begin anew in this folder")
    return parser


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse contradictions and impossible values.

    Raises:
        ValueError: Naming the flags.
    """
    check_model_flags(flags)
    if flags.metrics != [AUTO]:
        if AUTO in flags.metrics:
            raise ValueError("--metrics auto stands alone; name metrics, or leave the choice")
        check_names(flags.metrics)
    if flags.model_path is None and flags.predictions is None:
        raise ValueError("give --model-path, or --predictions with answers to score")
    if flags.predictions and flags.model_path:
        raise ValueError(
            "--predictions contradicts --model-path: no model is asked where answers are given"
        )
    if flags.compare_base:
        _check_base(flags)
    for name in ("limit", "max_frames", "batch_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if flags.seed < 0:
        raise ValueError(f"--seed is {flags.seed}, expected 0 or more")


def _check_base(flags: argparse.Namespace) -> None:
    if flags.base_predictions:
        raise ValueError("--compare-base contradicts --base-predictions; give one of them")
    if not flags.model_path or not is_adapter_folder(flags.model_path):
        raise ValueError(
            f"--compare-base switches an adapter off, but {flags.model_path or '--predictions'} is "
            "no adapter folder; evaluate the base alone and give its samples.jsonl as "
            "--base-predictions"
        )


def output_folder(flags: argparse.Namespace) -> Path:
    """Choose where to write.

    Raises:
        ValueError: No folder is given and none follows from the flags.
    """
    if flags.output:
        return Path(flags.output)
    if flags.model_path and Path(flags.model_path).is_dir():
        return Path(flags.model_path) / "evaluation" / Path(flags.data_path).stem
    raise ValueError("--output is missing: name a folder for scores and samples")


def answer_settings(flags: argparse.Namespace, data: str) -> dict[str, Any]:
    """Collect all that decides the answers; metrics and batches do not.

    Args:
        flags: The flags.
        data: Fingerprint of the data.
    """
    names = (
        *("model_path", "model_base", "dtype", "load_8bit", "load_4bit", "num_crops", "data_path"),
        *("image_folder", "turns", "limit", "system", "max_frames", "max_new_tokens", "num_beams"),
        *("repetition_penalty", "compare_base", "predictions", "base_predictions"),
    )
    settings = {name: getattr(flags, name) for name in names} | {"data": data}
    if flags.limit:
        settings["seed"] = flags.seed
    for name in ("model_path", "model_base"):
        if value := getattr(flags, name):
            settings[f"{name}_files"] = _weights(Path(value))
    return settings


def _weights(folder: Path) -> dict[str, list[int]]:
    """Tell one state of a checkpoint from another by size and time of its weights."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
