"""What stands between the arguments of a run and its first step: data, model and trainer."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from transformers import set_seed

from phi3v.data.answered import AnswerScorer
from phi3v.data.collator import Collator
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.packing import PackedDataset
from phi3v.data.processes import decided_by_first
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.durable import write_text
from phi3v.model.loading import load_config, load_processor
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.recompute import Regime
from phi3v.training.activations import apply_activation_memory, apply_compiler, for_trainer
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.batching import largest_batch, pack_training_set, settle_batch_size
from phi3v.training.building import build_model
from phi3v.training.callbacks import SkipCounter
from phi3v.training.checks import check_arguments
from phi3v.training.datasets import build_datasets, overviews, stream_position
from phi3v.training.estimate import predict
from phi3v.training.facts import settle_facts
from phi3v.training.features import attach_feature_cache
from phi3v.training.flags import RunArguments
from phi3v.training.output import (
    PLAN_FILE,
    choose_checkpoint,
    clear_earlier_run,
    write_run_files,
)
from phi3v.training.parts import format_table, table_of_parts
from phi3v.training.states import check_states
from phi3v.training.trainer import Phi3VTrainer

logger = logging.getLogger(__name__)

# Makes what scores answers, of the validation set, the processor and the arguments.
MakeScorer = Callable[[SupervisedDataset, Phi3VProcessor, RunArguments], AnswerScorer]


class RunData(NamedTuple):
    """What a run reads.

    Attributes:
        train_set: Samples, a stream of them, or packs.
        eval_set: Samples, if there are any.
        surveyed: The training samples, unless they are a stream.
        packs: The training set, if it is packed.
        skips: Counts what is skipped; None where a bad record is an error.
        overview: Numbers about the records, for the output folder.
        facts: What the run is made of.
    """

    train_set: Dataset
    eval_set: SupervisedDataset | None
    surveyed: SupervisedDataset | None
    packs: PackedDataset | None
    skips: SkipCounter | None
    overview: dict[str, Any]
    facts: dict[str, Any]


def prepare(
    arguments: RunArguments, make_scorer: MakeScorer | None = None
) -> tuple[Phi3VTrainer, str | None]:
    """Check everything, load model and data, and mark the output folder.

    Returns:
        The trainer and the checkpoint to resume from.
    """
    model_args, lora, _, training, _ = arguments
    for hint in check_arguments(*arguments[:4]):
        logger.warning(hint)
    assert training.output_dir is not None
    folder = Path(training.output_dir)
    checkpoint = decided_by_first(
        lambda: check_states(
            choose_checkpoint(
                folder, training.resume_from_checkpoint, overwrite=training.overwrite_output_dir
            )
        )
    )
    use_one_gpu(training)
    os.environ["TENSORBOARD_LOGGING_DIR"] = training.logging_dir
    config = load_config(model_args.model_id)
    set_seed(training.seed)
    processor = load_processor(model_args.model_id, num_crops=arguments.data.num_crops)
    data = prepare_data(arguments, processor, config, checkpoint)
    score_answers = prepare_scorer(arguments, processor, data, make_scorer)
    model = build_model(arguments)
    features = attach_feature_cache(arguments, model, processor, data.train_set, data.eval_set)
    regime = apply_activation_memory(arguments, model, config, data.train_set)
    plan = predict_from_data(arguments, model, data, regime)
    apply_compiler(model, training)
    rows = table_of_parts(model, training, lora)
    trainer = Phi3VTrainer(
        base_folder=model_args.model_id,
        lora=lora,
        model=model,
        args=for_trainer(training),
        train_dataset=data.train_set,
        eval_dataset=data.eval_set,
        data_collator=Collator(
            processor.tokenizer.pad_token_id,
            processor.image_token_id,
            padding_free=training.padding_free,
        ),
        processor=processor,
        skips=data.skips,
        facts=data.facts,
        score_answers=score_answers,
        features=features,
    )
    if trainer.is_world_process_zero():
        if checkpoint is None:
            for name in clear_earlier_run(folder):
                logger.warning("removed %s of the earlier run", name)
        write_run_files(folder, arguments, rows, data.overview)
        if plan is not None:
            write_text(folder / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
        print(format_table(rows), flush=True)
    return trainer, checkpoint


def prepare_data(
    arguments: RunArguments,
    processor: Phi3VProcessor,
    config: Phi3VConfig,
    checkpoint: str | None,
) -> RunData:
    """Open and check the data sets, compare them with the checkpoint's, and pack them if asked."""
    _, _, data, training, _ = arguments
    train_set: Dataset
    train_set, eval_set = build_datasets(
        data,
        processor,
        resumed=checkpoint is not None,
        seed=training.seed if training.data_seed is None else training.data_seed,
        position=stream_position(training, checkpoint) if data.streaming else None,
    )
    overview = overviews(train_set, eval_set)
    samples = train_set
    facts = decided_by_first(lambda: settle_facts(arguments, samples, checkpoint))
    skips = None
    if data.on_bad_record == "skip":
        skips = SkipCounter(data.max_bad_records, train_set.num_bad_records)
    surveyed = train_set if isinstance(train_set, SupervisedDataset) else None
    packs = None
    if training.packing:
        settle_batch_size(arguments)
        assert surveyed is not None
        train_set = packs = pack_training_set(surveyed, config, arguments)
    return RunData(train_set, eval_set, surveyed, packs, skips, overview, facts)


def prepare_scorer(
    arguments: RunArguments,
    processor: Phi3VProcessor,
    data: RunData,
    make_scorer: MakeScorer | None,
) -> AnswerScorer | None:
    """Make what ``--eval_generate`` scores answers with, if it is on.

    Raises:
        ValueError: Nobody can score answers here, or a metric is unknown.
    """
    if not arguments.training.eval_generate or data.eval_set is None:
        return None
    if make_scorer is None:
        raise ValueError("--eval_generate scores nothing here; start the run by phi3v train")
    return make_scorer(data.eval_set, processor, arguments)


def predict_from_data(
    arguments: RunArguments, model: Any, data: RunData, regime: Regime
) -> dict[str, Any] | None:
    """Predict what the run will need, where the lengths of its samples are known."""
    if data.surveyed is None or data.surveyed.num_crops is None:
        return None
    largest = largest_batch(data.surveyed, data.packs, arguments.training)
    return predict(model, arguments, largest, regime)


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
