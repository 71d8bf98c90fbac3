"""The command ``phi3v train``: from arguments to an output folder."""

import json
import logging
import runpy
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from phi3v.data.processes import disconnect, one_voice, quiet_unless_first, rank
from phi3v.model.durable import write_text
from phi3v.training.building import compute_dtype
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.guard import STATUS_NOT_FINITE, NotFiniteError
from phi3v.training.interruption import STATUS_INTERRUPTED, last_words, wait_unheeding
from phi3v.training.output import PLAN_FILE, SUMMARY_FILE, kept_to_one_run
from phi3v.training.preparing import MakeScorer, prepare
from phi3v.training.summary import measure, summarize
from phi3v.training.trainer import Phi3VTrainer

logger = logging.getLogger(__name__)


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
        FileExistsError: The output folder is in use, or another run is writing there.
    """
    folder = Path(str(arguments.training.output_dir))
    with ExitStack() as stack:
        with one_voice():
            stack.enter_context(kept_to_one_run(folder))
            trainer, checkpoint = prepare(arguments, make_scorer)
        with trainer.stop_request:
            trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.is_interrupted:
                return trainer
            trainer.save_result(compute_dtype(arguments.training))
        trainer.tokens.sum_over_processes(trainer.accelerator)
        if trainer.is_world_process_zero():
            measured = measure(trainer, folder / PLAN_FILE)
            write_text(folder / SUMMARY_FILE, json.dumps(measured, indent=2) + "\n")
            print(summarize(measured, folder), flush=True)
    return trainer


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
