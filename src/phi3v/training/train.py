"""The command ``phi3v train``: from arguments to an output folder."""

import json
import logging
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from torch.utils.data import Dataset
from transformers import set_seed

from phi3v.data.answered import AnswerScorer
from phi3v.data.collator import Collator
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.processes import (
    decided_by_first,
    disconnect,
    one_voice,
    quiet_unless_first,
    rank,
)
from phi3v.model.durable import write_text
from phi3v.model.loading import (
    load_config,
    load_processor,
)
from phi3v.model.processing import Phi3VProcessor
from phi3v.training.activations import apply_activation_memory, apply_compiler, for_trainer
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.batching import largest_batch, pack_training_set, settle_batch_size
from phi3v.training.building import build_model, compute_dtype
from phi3v.training.callbacks import SkipCounter
from phi3v.training.checks import check_arguments
from phi3v.training.datasets import build_datasets, overviews, stream_position
from phi3v.training.estimate import predict
from phi3v.training.facts import settle_facts
from phi3v.training.features import attach_feature_cache
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.guard import STATUS_NOT_FINITE, NotFiniteError
from phi3v.training.interruption import STATUS_INTERRUPTED, last_words, wait_unheeding
from phi3v.training.output import (
    PLAN_FILE,
    SUMMARY_FILE,
    choose_checkpoint,
    clear_earlier_run,
    write_run_files,
)
from phi3v.training.parts import (
    format_table,
    table_of_parts,
)
from phi3v.training.summary import measure, summarize
from phi3v.training.trainer import Phi3VTrainer

logger = logging.getLogger(__name__)


# Makes what scores answers, of the validation set, the processor and the arguments.
MakeScorer = Callable[[SupervisedDataset, Phi3VProcessor, RunArguments], AnswerScorer]


def run(arguments: RunArguments, make_scorer: MakeScorer | None = None) -> Phi3VTrainer:
    """Train as the arguments say and write the output folder; no result if interrupted.

    Args:
        arguments: Of the run.
        make_scorer: What ``--eval_generate`` scores answers with.

    Returns:
        The trainer after the last step, or after the one in which a signal stopped it.

    Raises:
        OSError: The output folder cannot be written any more.
        ValueError: Contradicting flags, bad data or a damaged checkpoint; see the message.
        FileNotFoundError: Model, data or media are missing.
        FileExistsError: The output folder is in use.
    """
    with one_voice():
        trainer, checkpoint = prepare(arguments, make_scorer)
    with trainer.stop_request:
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.is_interrupted:
            return trainer
        trainer.save_result(compute_dtype(arguments.training))
    trainer.tokens.sum_over_processes(trainer.accelerator)
    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir))
        measured = measure(trainer, folder / PLAN_FILE)
        write_text(folder / SUMMARY_FILE, json.dumps(measured, indent=2) + "\n")
        print(summarize(measured, folder), flush=True)
    return trainer


def prepare(
    arguments: RunArguments, make_scorer: MakeScorer | None = None
) -> tuple[Phi3VTrainer, str | None]:
    """Check everything, load model and data, and mark the output folder.

    Returns:
        The trainer and the checkpoint to resume from.
    """
    model_args, lora, data, training, _ = arguments
    for hint in check_arguments(model_args, lora, data, training):
        logger.warning(hint)
    assert training.output_dir is not None
    folder = Path(training.output_dir)
    checkpoint = decided_by_first(
        lambda: choose_checkpoint(
            folder, training.resume_from_checkpoint, overwrite=training.overwrite_output_dir
        )
    )
    use_one_gpu(training)
    os.environ["TENSORBOARD_LOGGING_DIR"] = training.logging_dir
    config = load_config(model_args.model_id)
    set_seed(training.seed)
    processor = load_processor(model_args.model_id, num_crops=data.num_crops)
    train_set: Dataset
    train_set, eval_set = build_datasets(
        data,
        processor,
        resumed=checkpoint is not None,
        seed=training.seed if training.data_seed is None else training.data_seed,
        position=stream_position(training, checkpoint) if data.streaming else None,
    )
    found = overviews(train_set, eval_set)
    facts = decided_by_first(lambda: settle_facts(arguments, train_set, checkpoint))
    scorer = None
    if training.eval_generate and eval_set is not None:
        if make_scorer is None:
            raise ValueError("--eval_generate scores nothing here; start the run by phi3v train")
        scorer = make_scorer(eval_set, processor, arguments)
    skips = None
    if data.on_bad_record == "skip":
        skips = SkipCounter(data.max_bad_records, train_set.num_bad_records)
    surveyed = train_set if isinstance(train_set, SupervisedDataset) else None
    packs = None
    if training.packing:
        settle_batch_size(arguments)
        assert surveyed is not None
        train_set = packs = pack_training_set(surveyed, config, arguments)
    model = build_model(arguments)
    features = attach_feature_cache(arguments, model, processor, train_set, eval_set)
    regime = apply_activation_memory(arguments, model, config, train_set)
    plan = None
    if surveyed is not None and surveyed.num_crops is not None:
        plan = predict(model, arguments, largest_batch(surveyed, packs, training), regime)
    apply_compiler(model, training)
    rows = table_of_parts(model, training, lora)
    trainer = Phi3VTrainer(
        base_folder=model_args.model_id,
        lora=lora,
        model=model,
        args=for_trainer(training),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=Collator(
            processor.tokenizer.pad_token_id,
            processor.image_token_id,
            padding_free=training.padding_free,
        ),
        processor=processor,
        skips=skips,
        facts=facts,
        score_answers=scorer,
        features=features,
    )
    if trainer.is_world_process_zero():
        if checkpoint is None:
            for name in clear_earlier_run(folder):
                logger.warning("removed %s of the earlier run", name)
        write_run_files(folder, arguments, rows, found)
        if plan is not None:
            write_text(folder / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
        print(format_table(rows), flush=True)
    return trainer, checkpoint


def use_one_gpu(training: Phi3VTrainingArguments) -> None:
    """Keep a process without a launcher to one GPU; the library would split batches over all.

    Pictures travel beside the rows of a batch, so a split by rows would tear them apart.
    """
    if training.n_gpu > 1:
        logger.warning(
            "1 of %d GPUs is used; to use all: torchrun --nproc-per-node %d -m "
            "phi3v.training.train ...",
            training.n_gpu,
            training.n_gpu,
        )
        training._n_gpu = 1


def main(
    argv: list[str],
    *,
    make_scorer: MakeScorer | None = None,
    at_end: Callable[[Path], None] | None = None,
) -> int:
    """Run a training.

    Args:
        argv: Words behind ``phi3v train``.
        make_scorer: What ``--eval_generate`` scores answers with.
        at_end: Called on the first process with the folder of a finished run.

    Returns:
        Exit status.
    """
    level = logging.WARNING if rank() == 0 else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    with one_voice(), quiet_unless_first():
        arguments, messages = parse_arguments(argv)
    for message in messages:
        logger.warning(message)
    trainer, status = None, 0
    try:
        trainer = run(arguments, make_scorer)
    except NotFiniteError as error:
        status = STATUS_NOT_FINITE
        if rank() == 0:
            print(f"phi3v train: stopped: {error}", file=sys.stderr)
    folder = Path(str(arguments.training.output_dir))
    if trainer is not None and trainer.is_interrupted:
        status = STATUS_INTERRUPTED
        if rank() == 0:
            print(last_words(trainer.stop_request, trainer.state, str(folder)), file=sys.stderr)
    if status:
        wait_unheeding()
    # Before the process group, which the model holds, too; see there.
    del trainer
    disconnect()
    if rank() == 0 and status == 0 and at_end is not None:
        at_end(folder)
    return status


if __name__ == "__main__":
    # Launchers start this module; the whole command, with what is above this room, is phi3v train.
    sys.argv.insert(1, "train")
    runpy.run_module("phi3v", run_name="__main__", alter_sys=True)
