"""The command ``phi3v train`` with its neighbours: answers scored on the way, a report at the end.

Training and evaluation never import each other; here the one is handed what the other makes.
"""

import logging
from pathlib import Path

from phi3v.data.answered import AnswerScorer
from phi3v.data.dataset import SupervisedDataset
from phi3v.evaluation.answering import Answering
from phi3v.evaluation.choice import Choice, choose_metrics
from phi3v.evaluation.flags import AUTO
from phi3v.evaluation.metrics import check_names
from phi3v.evaluation.report import write_report
from phi3v.evaluation.while_training import ValidationScorer, draw_questions
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings
from phi3v.training import train
from phi3v.training.flags import RunArguments

logger = logging.getLogger(__name__)

NUM_LOOKED_AT = 1000


def main(argv: list[str]) -> int:
    """Run ``phi3v train``."""
    return train.main(argv, make_scorer=make_scorer, at_end=report)


def make_scorer(
    dataset: SupervisedDataset, processor: Phi3VProcessor, arguments: RunArguments
) -> AnswerScorer:
    """Prepare the evaluations of ``--eval_generate``.

    Args:
        dataset: Validation set.
        processor: Of the checkpoint.
        arguments: Of the run.

    Raises:
        ValueError: A metric is unknown, or the one that decides is not computed.
    """
    training = arguments.training
    questions = draw_questions(dataset, training.eval_generate_samples, training.seed)
    if list(training.eval_metrics) == [AUTO]:
        # More than are asked tell better what kind of answers these are.
        looked_at = draw_questions(dataset, NUM_LOOKED_AT, training.seed)
        choice = choose_metrics([question.references for question in looked_at])
    else:
        check_names(training.eval_metrics)
        choice = Choice(list(training.eval_metrics), "as asked for")
    deciding = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if deciding != "loss" and deciding not in choice.names:
        raise ValueError(
            f"--metric_for_best_model {deciding} is not computed; --eval_metrics gives loss, "
            f"{', '.join(choice.names)} ({choice.reason})"
        )
    answering = Answering(
        training.per_device_eval_batch_size,
        GenerationSettings(max_new_tokens=training.eval_generate_tokens),
        arguments.data.max_num_frames,
    )
    folder = Path(str(training.output_dir))
    return ValidationScorer(
        questions, processor, choice, answering, folder, str(arguments.data.eval_data_path)
    )


def report(folder: Path) -> None:
    """Write the report of a finished run; a run that cannot have one is no failure."""
    try:
        print(f"report           {write_report(folder)}", flush=True)
    except (OSError, ValueError) as error:
        logger.warning("no report was written: %s", error)
