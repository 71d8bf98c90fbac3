"""The command ``phi3v demo``: the whole path on real handwriting, on a CPU, in a few minutes.

A tiny base model that reads drawn letters learns to read handwritten digits: scored before,
fine-tuned by the code of ``phi3v train``, scored after, merged, asked.
"""

import argparse
import json
import logging
import platform
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers

from phi3v import __version__
from phi3v.demo.digits import DIGIT, QUESTIONS, DemoData, is_right, write_dataset
from phi3v.demo.page import Sample, Score, terminal_table, write_page
from phi3v.demo.scoring import Answers, answer_all, expected_of, question_of, score
from phi3v.training import train
from phi3v.training.flags import parse_arguments
from phi3v.training.merge import merge

MARK = ".phi3v-demo"
# What is learned in the run; everything else is a default of ``phi3v train``.
RECIPE = {
    "lora_enable": "True",
    "lora_rank": "32",
    "lora_alpha": "64",
    "lora_dropout": "0",
    "num_crops": "1",
    "num_train_epochs": "2",
    "per_device_train_batch_size": "8",
    "gradient_accumulation_steps": "1",
    "learning_rate": "2e-3",
    "vision_lr": "8e-4",
    "projector_lr": "2e-3",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "0.05",
    "logging_steps": "10",
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_num_workers": "0",
    "use_cpu": "True",
}


def train_flags(folder: Path, data: DemoData, seed: int) -> list[str]:
    """List the flags of the run, as one would type them after ``phi3v train``."""
    fields = {
        "model_id": str(folder / "base"),
        "data_path": str(data.train_json),
        "image_folder": str(data.image_folder),
        "output_dir": str(folder / "adapter"),
        "seed": str(seed),
    }
    return [word for name, value in (fields | RECIPE).items() for word in (f"--{name}", value)]


class Stopwatch:
    """Seconds of each stage; prints what begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def begin(self, text: str) -> None:
        """Announce a stage."""
        print(f"\n{text}", flush=True)
        self._started = time.perf_counter()

    def end(self, name: str) -> None:
        """Take the seconds of the stage that ends."""
        self.seconds[name] = time.perf_counter() - self._started


def prepare_folder(folder: Path) -> None:
    """Make the output folder; what an earlier demo left there is replaced.

    Raises:
        FileExistsError: Something else is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise FileExistsError(
                f"--output {folder} is not empty and not from an earlier demo; name a new folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    with resources.as_file(resources.files("phi3v.demo").joinpath("base")) as base:
        shutil.copytree(base, folder / "base")


def run(folder: Path, *, seed: int, num_train: int, num_eval: int) -> dict[str, Score]:
    """Walk the whole path and write everything into one folder.

    Args:
        folder: Output folder.
        seed: Decides the choice of pictures and the training.
        num_train: Number of training pictures, up to 4,500.
        num_eval: Number of held-out pictures, up to 500.

    Returns:
        Scores after training by kind of question.
    """
    watch = Stopwatch()
    prepare_folder(folder)
    watch.begin(f"1. Writing {num_train:,} training pictures and {num_eval} held-out ones")
    data = write_dataset(folder / "data", num_train, num_eval, seed=seed)
    records = [
        record
        for file in (data.eval_json, data.eval_other_json)
        for record in json.loads(file.read_text(encoding="utf-8"))
    ]
    watch.end("writing the data")
    watch.begin("2. Asking the base model, which knows letters and no digits")
    before = answer_all(folder / "base", records, data.image_folder)
    watch.end("scoring before")
    flags = train_flags(folder, data, seed)
    watch.begin("3. Fine-tuning: phi3v train " + " ".join(flags))
    trainer = train.run(parse_arguments(flags)[0])
    watch.end("fine-tuning")
    watch.begin("4. Asking the fine-tuned model")
    after = answer_all(folder / "adapter", records, data.image_folder)
    watch.end("scoring after")
    watch.begin("5. Merging the adapter into the base, and asking the merged model")
    merged = merge(folder / "adapter", folder / "merged")
    first = records[0]
    answer = answer_all(merged, [first], data.image_folder)[first["id"]]
    print(f"   {first['image']}: {DIGIT.wordings[0]} {answer!r} (it is {expected_of(first)!r})")
    watch.end("merging and asking")
    scores = score(records, before), score(records, after)
    write_page(
        folder / "report.html",
        title="phi3v demo: handwritten digits",
        rows=_gallery(records, before, after, data.image_folder),
        scores_before=scores[0],
        scores_after=scores[1],
        seconds=watch.seconds,
        loss_curve=[
            (int(line["step"]), line["loss"])
            for line in trainer.state.log_history
            if "loss" in line
        ],
        facts=_facts(flags, seed, folder),
    )
    print("\n" + terminal_table(*scores, watch.seconds))
    _print_next(folder, data.image_folder / first["image"])
    return scores[1]


def _gallery(
    records: Sequence[Mapping[str, Any]], before: Answers, after: Answers, image_folder: Path
) -> list[Sample]:
    """Take the first wrong answers, up to six, and the first records of each question."""
    wrong = [r for r in records if not is_right(after[r["id"]], expected_of(r))][:6]
    kinds = [r for kind in ("digit", "parity", "size") for r in _of_kind(records, kind)[:6]]
    chosen = {record["id"]: record for record in [*kinds, *wrong]}
    return [
        Sample(
            image_path=image_folder / record["image"],
            question=question_of(record).replace("<image>\n", ""),
            expected=expected_of(record),
            before=before[name],
            after=after[name],
        )
        for name, record in chosen.items()
    ]


def _of_kind(records: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["id"].endswith(f"_{kind}")]


def _facts(flags: list[str], seed: int, folder: Path) -> dict[str, str]:
    parts = json.loads((folder / "adapter" / "parts.json").read_text(encoding="utf-8"))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(one.ru_utime + one.ru_stime for one in usage)
    return {
        "Trained": "; ".join(
            f"{row['part']}: {row['method']}, {row['trainable']:,} of {row['total']:,}"
            for row in parts
        ),
        "Questions": ", ".join(question.wordings[0] for question in QUESTIONS),
        "Answers": "generated; right only when the whole answer matches",
        "Samples shown": "the first six held-out pictures of each question, and the first six "
        "wrong answers",
        "Seed": str(seed),
        "CPU seconds so far": f"{cpu_seconds:.0f}",
        "Versions": f"phi3v {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
        "Train command": "phi3v train " + " ".join(flags),
    }


def _print_next(folder: Path, picture: Path) -> None:
    print(f"\nreport        {folder / 'report.html'}")
    print(f"merged model  {folder / 'merged'}")
    print(
        f"next          phi3v generate --model-path {folder / 'merged'} --image-file {picture} "
        f"--prompt {DIGIT.wordings[0]!r}"
    )


def main(argv: list[str]) -> int:
    """Run ``phi3v demo``."""
    parser = argparse.ArgumentParser(
        prog="phi3v demo",
        description="Fine-tune, score, merge and ask a tiny model on real handwriting, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training")
    parser.add_argument("--num_train", type=int, default=4500, help="training pictures, to 4500")
    parser.add_argument("--num_eval", type=int, default=500, help="held-out pictures, to 500")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    run(
        arguments.output,
        seed=arguments.seed,
        num_train=arguments.num_train,
        num_eval=arguments.num_eval,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
