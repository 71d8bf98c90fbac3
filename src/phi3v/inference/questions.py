"""Questions from a data file, answers into a JSONL file."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from phi3v.data.options import MediaOptions
from phi3v.data.questions import Question, open_question
from phi3v.model.answers import answer_batch
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings

_PUBLISHED = MediaOptions()


def prepare_output(path: str | Path, *, resume: bool, overwrite: bool) -> set[str]:
    """Look at the output file before the work begins; nothing in it is lost yet.

    Args:
        path: JSONL file; its folder is made.
        resume: Keep the answers of an existing file. A last line that was cut off is removed.
        overwrite: An existing file may be replaced.

    Returns:
        Ids, as text, that have an answer already.

    Raises:
        FileExistsError: The file exists and neither is wanted.
        ValueError: Both are wanted, or the file to go on with is no file of answers.
    """
    path = Path(path)
    if resume and overwrite:
        raise ValueError("--resume keeps the output and --overwrite empties it; give one of them")
    if path.exists() and not (resume or overwrite):
        raise FileExistsError(
            f"{path} exists; add --resume to answer what is missing in it, or --overwrite"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if overwrite or not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    ids = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            answer = json.loads(line)
            ids.add(str(answer["id"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}: line {number} is no answer with an 'id'; name another output file"
            ) from None
    if whole != content:
        os.truncate(path, len(whole))
    return ids


def answer_questions(
    model: Any,
    processor: Phi3VProcessor,
    questions: Sequence[Question],
    *,
    batch_size: int = 1,
    settings: GenerationSettings | None = None,
    max_num_frames: int = 10,
    options: MediaOptions = _PUBLISHED,
) -> Iterator[dict[str, Any]]:
    """Answer questions in batches and yield their lines of output, in order.

    Args:
        model: The model.
        processor: Its processor.
        questions: What to answer.
        batch_size: Questions that are answered together.
        settings: How to choose the answers.
        max_num_frames: Most frames of a video.
        options: Which media may be opened, and how.

    Raises:
        ValueError: A picture or video cannot be read, or a prompt is too long; names the record.
    """
    with tqdm(total=len(questions), unit="question", disable=None) as progress:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            conversations = [
                open_question(question, max_num_frames=max_num_frames, options=options)
                for question in batch
            ]
            answers = answer_batch(model, processor, conversations, settings)
            for question, answer in zip(batch, answers, strict=True):
                line = {"id": question.id, "prompt": question.turns[-1].text, "answer": answer}
                if references := list(question.references):
                    line["reference"] = references if len(references) > 1 else references[0]
                yield line
            progress.update(len(batch))
