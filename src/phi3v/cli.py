"""The ``phi3v`` command: one table of commands, each in its own room.

A room is imported only when its command is asked for, so that ``phi3v --help`` needs neither torch
nor transformers. Every command is a function ``main(argv: list[str]) -> int`` that returns the exit
status.
"""

import difflib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, NoReturn

from phi3v import __version__

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError)
# As in sysexits.h.
STATUS_IO_ERROR = 74


class Command(NamedTuple):
    """Where a command lives and what the help says about it."""

    module: str
    summary: str


COMMANDS = {
    "check": Command("phi3v.data.check", "find bad records and count tokens before training"),
    "plan": Command("phi3v.training.plan", "say what a run will need before it starts"),
    "train": Command("phi3v.finetune", "fine-tune a checkpoint on pictures, videos and text"),
    "merge": Command("phi3v.training.merge", "fold an adapter into its base model"),
    "evaluate": Command("phi3v.evaluation.evaluate", "score the answers of a model to a data set"),
    "report": Command("phi3v.evaluation.report", "write one page about a run and its scores"),
    "card": Command("phi3v.evaluation.publish", "describe a checkpoint, and send it to the Hub"),
    "generate": Command("phi3v.inference.generate", "ask a model about pictures at the terminal"),
    "serve": Command("phi3v.inference.serve", "serve a page and an OpenAI-compatible API"),
    "demo": Command("phi3v.demo.run", "walk the whole path on real handwriting, on a CPU"),
    "init-tiny": Command("phi3v.model.tiny", "write a tiny random checkpoint to try things with"),
}


def help_text() -> str:
    """Build the text of ``phi3v --help`` from the table of commands."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: phi3v [--debug] COMMAND [ARGUMENTS]",
            "",
            "Fine-tune, merge and run Phi-3-vision and Phi-3.5-vision.",
            "",
            "commands:",
            *rows,
            "",
            "options:",
            "  --help     show this text; phi3v COMMAND --help explains one command",
            "  --version  show the version",
            "  --debug    show the traceback of an error (or set PHI3V_DEBUG=1)",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``phi3v``; those of the process when left out.

    Returns:
        Exit status: 0 for success, 2 for an error of the user, 74 where a file cannot be read or
            written, 130 when interrupted; ``phi3v train`` has more.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("PHI3V_DEBUG") == "1"
    if words[:1] == ["--debug"]:
        debug = True
        del words[0]
    if not words:
        print(help_text(), file=sys.stderr)
        return 2
    name, arguments = words[0], words[1:]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"phi3v {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"phi3v: error: {_explain_unknown(name)}", file=sys.stderr)
        return 2
    return _run(name, arguments, debug)


def start() -> NoReturn:
    """Run the command of this process, and end it with its status.

    One of several processes that share a work ends at once when it fails. Python would take apart
    first what they share: the threads that exchange gradients wait for processes that go on
    without this one, and this one would wait for its threads.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(main())
    try:
        status: int | str | None = main()
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not status:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def quiet_libraries() -> None:
    """Drop messages of libraries that are about themselves and ask nothing of the user."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed sets the level of its logger when it is imported; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(
        lambda message: "Setting accelerator to CPU" not in message.getMessage()
    )
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def _run(name: str, arguments: list[str], debug: bool) -> int:
    quiet_libraries()
    try:
        command: Callable[[list[str]], int] = import_module(COMMANDS[name].module).main
        return command(arguments)
    except (*USER_ERRORS, OSError) as error:
        if debug:
            raise
        print(f"phi3v {name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, USER_ERRORS) else STATUS_IO_ERROR
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"phi3v {name}: interrupted", file=sys.stderr)
        return 130


def _explain_unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    if close:
        return f"unknown command {name!r}; did you mean {close[0]!r}?"
    return f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}"
