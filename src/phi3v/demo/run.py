"""The command ``phi3v demo``: the whole path on real handwriting, on a CPU, in a few minutes.

A tiny base model that reads drawn letters learns to read handwritten digits: scored before,
fine-tuned by the code of ``phi3v train``, scored after, merged, asked.
"""

import argparse
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch

from phi3v.demo.digits import DIGIT, DemoData, write_dataset
from phi3v.demo.page import Score, terminal_table, write_page
from phi3v.demo.report import cpu_seconds, facts, gallery, loss_curve
from phi3v.demo.scoring import answer_all, expected_of, score
from phi3v.training import train
from phi3v.training.flags import parse_arguments
from phi3v.training.merge import merge

MARK = ".phi3v-demo"
NUM_TRAIN, NUM_EVAL = 4500, 500
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
        # So that the printed command can be given again.
        "overwrite_output_dir": "True",
        # Ctrl-C ends the walk.
        "save_on_signal": "False",
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
    watch.begin("3. Fine-tuning: phi3v train " + shlex.join(flags))
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
        rows=gallery(records, before, after, data.image_folder),
        scores_before=scores[0],
        scores_after=scores[1],
        seconds=watch.seconds,
        loss_curve=loss_curve(trainer.state.log_history),
        facts=facts(flags, seed, folder / "adapter"),
    )
    print("\n" + terminal_table(*scores, watch.seconds))
    print(f"\nCPU time      {cpu_seconds():.0f} s of the whole process")
    _print_next(folder, data.image_folder / first["image"])
    return scores[1]


def _print_next(folder: Path, picture: Path) -> None:
    merged = folder / "merged"
    words = ["--model-path", str(merged), "--image-file", str(picture)]
    ask = shlex.join([*words, "--prompt", DIGIT.wordings[0]])
    print(f"report        {folder / 'report.html'}")
    print(f"merged model  {merged}")
    print(f"next          phi3v generate {ask}")
    print(f"              phi3v generate {shlex.join(words)}   (a chat about the picture)")


def _number(least: int, most: int) -> Callable[[str], int]:
    """Make a check of a flag, so that a bad value is refused before an earlier demo is replaced."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return read


def main(argv: list[str]) -> int:
    """Run ``phi3v demo``."""
    parser = argparse.ArgumentParser(
        prog="phi3v demo",
        description="Fine-tune, score, merge and ask a tiny model on real handwriting, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument(
        "--seed", type=_number(0, 2**32 - 1), default=0, help="seed of data and training"
    )
    parser.add_argument(
        "--num_train",
        type=_number(1, NUM_TRAIN),
        default=NUM_TRAIN,
        help=f"training pictures, to {NUM_TRAIN}",
    )
    parser.add_argument(
        "--num_eval",
        type=_number(1, NUM_EVAL),
        default=NUM_EVAL,
        help=f"held-out pictures, to {NUM_EVAL}",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # The matrices are too small to share. More threads would wait for each other, and a wait is CPU
    # time: the worse the busier the machine is.
    torch.set_num_threads(1)
    run(
        arguments.output,
        seed=arguments.seed,
        num_train=arguments.num_train,
        num_eval=arguments.num_eval,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
