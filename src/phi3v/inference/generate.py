"""``phi3v generate``: one question, a chat at the terminal, or a file of questions."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from phi3v.data.attachments import Attachment, attach
from phi3v.data.media_flags import add_media_flags, media_options
from phi3v.data.questions import read_questions
from phi3v.inference.chat import ChatSession, GenerationSettings
from phi3v.inference.questions import answer_questions, prepare_output
from phi3v.inference.terminal import Terminal, note, print_answer
from phi3v.model.flags import (
    add_compile_flag,
    add_flag,
    add_model_flags,
    check_compile_flag,
    check_model_flags,
    load_from_flags,
)
from phi3v.model.loading import load_processor
from phi3v.model.processing import Phi3VProcessor

_ONE_QUESTION_FLAGS = ("prompt", "image_file", "video_file", "debug")
_FILE_FLAGS = ("output", "image_folder", "batch_size", "resume", "overwrite")
DEFAULT_BATCH_SIZE = 4


def build_parser() -> argparse.ArgumentParser:
    """Describe the flags; each may be written with hyphens or with underscores."""
    parser = argparse.ArgumentParser(
        prog="phi3v generate",
        description="Ask a model about pictures and videos: one question with --prompt, a file of "
        "questions with --input and --output, else a chat.",
        epilog="Flags may be written with underscores, too (--model_path).",
        allow_abbrev=False,
    )
    add_model_flags(parser)
    asked = parser.add_argument_group("the question")
    add_flag(asked, "prompt", help="one question; without it, a chat at the terminal")
    add_flag(asked, "system", help="text of a system turn")
    add_flag(asked, "image-file", nargs="+", action="extend", metavar="PATH",
         help='pictures of the first question, also as "a.jpg, b.jpg"; videos are known by their '
         "suffix")  # fmt: skip
    add_flag(asked, "video-file", nargs="+", action="extend", metavar="PATH", help="videos")
    add_flag(asked, "max-frames", type=int, default=10, help="most frames of a video (%(default)s)")
    add_flag(asked, "debug", action="store_true", help="show rendered prompts and token counts")
    add_media_flags(parser.add_argument_group("the media"))
    answer = parser.add_argument_group("the answer")
    add_flag(answer, "max-new-tokens", type=int, default=500, help="most tokens (%(default)s)")
    add_flag(answer, "temperature", type=float, default=0.0,
         help="0 takes the likeliest token, above 0 tokens are drawn (%(default)s)")  # fmt: skip
    add_flag(answer, "top-p", type=float, default=1.0, help="draw from this share (%(default)s)")
    add_flag(answer, "repetition-penalty", type=float, default=1.0, help="(%(default)s)")
    add_flag(answer, "num-beams", type=int, default=1, help="beams of a beam search (%(default)s)")
    add_flag(answer, "seed", type=int, help="makes drawn answers repeatable")
    add_compile_flag(answer)
    files = parser.add_argument_group("a file of questions")
    add_flag(files, "input", metavar="JSONL", help="records with id, prompt and image or video, or "
         "training records, whose last answer is put aside as reference")  # fmt: skip
    add_flag(files, "output", metavar="JSONL", help="one line with id, prompt and answer for each")
    add_flag(files, "image-folder", help="folder of the media; default: paths as they are")
    add_flag(files, "batch-size", type=int,
         help=f"questions answered together ({DEFAULT_BATCH_SIZE})")  # fmt: skip
    add_flag(files, "resume", action="store_true", help="answer only ids that the output lacks")
    add_flag(files, "overwrite", action="store_true", help="replace an existing output")
    return parser


def main(argv: list[str]) -> int:
    """Run ``phi3v generate``."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    settings = GenerationSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        num_beams=arguments.num_beams,
        static_cache=arguments.compile,
    )
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    # Everything a user can get wrong is looked at before the weights are read.
    processor = load_processor(arguments.model_path, arguments.num_crops, arguments.model_base)
    if arguments.input:
        return _answer_file(arguments, processor, settings)
    attachments = open_attachments(arguments)
    session = ChatSession(
        load_from_flags(arguments),
        processor,
        arguments.system,
        max_num_frames=arguments.max_frames,
        settings=settings,
        media_options=media_options(arguments),
    )
    if arguments.prompt is None:
        Terminal(session, attachments, debug=arguments.debug).run()
    else:
        print_answer(session, arguments.prompt, attachments, debug=arguments.debug)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or would be ignored."""
    given = {name for name, value in vars(arguments).items() if value not in (None, False)}
    refused = _ONE_QUESTION_FLAGS if arguments.input else _FILE_FLAGS
    if wrong := [name for name in refused if name in given]:
        reason = "cannot stand beside --input" if arguments.input else "needs --input"
        raise ValueError(f"--{wrong[0].replace('_', '-')} {reason}")
    if arguments.input and not arguments.output:
        raise ValueError("--input needs --output, the file for the answers")
    if arguments.input and Path(arguments.input).resolve() == Path(arguments.output).resolve():
        raise ValueError("--input and --output are the same file; name another output")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("--prompt is empty; write a question, or leave it out for a chat")
    check_model_flags(arguments)
    check_compile_flag(arguments)
    if arguments.compile and arguments.num_beams > 1:
        raise ValueError("--compile cannot stand beside --num-beams: beams reorder their cache")
    for name in ("max_frames", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")


def open_attachments(arguments: argparse.Namespace) -> list[Attachment]:
    """Open the files of --image-file and --video-file, in the order given."""
    frames = arguments.max_frames
    options = media_options(arguments)
    opened = [
        attach(path, max_num_frames=frames, options=options)
        for path in split_paths(arguments.image_file)
    ]
    for path in split_paths(arguments.video_file):
        opened.append(attach(path, kind="video", max_num_frames=frames, options=options))
    return opened


def split_paths(words: Sequence[str] | None) -> list[str]:
    """Split lists such as "a.jpg, b.jpg"; a comma in the name of an existing file is kept."""
    paths = []
    for word in words or ():
        parts = [word] if Path(word).is_file() else word.split(",")
        paths += [part.strip() for part in parts if part.strip()]
    return paths


def _answer_file(
    arguments: argparse.Namespace, processor: Phi3VProcessor, settings: GenerationSettings
) -> int:
    folder = arguments.image_folder
    options = media_options(arguments)
    questions = read_questions(
        arguments.input, image_folder=folder, system=arguments.system, options=options
    )
    done = prepare_output(arguments.output, resume=arguments.resume, overwrite=arguments.overwrite)
    missing = [question for question in questions if str(question.id) not in done]
    if missing:
        lines = answer_questions(
            load_from_flags(arguments),
            processor,
            missing,
            batch_size=arguments.batch_size or DEFAULT_BATCH_SIZE,
            settings=settings,
            max_num_frames=arguments.max_frames,
            options=options,
        )
        mode = "w" if arguments.overwrite else "a"
        with open(arguments.output, mode, encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
    kept = len(questions) - len(missing)
    note(f"{len(missing)} answers written to {arguments.output}, {kept} kept")
    return 0
