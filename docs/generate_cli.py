"""Write docs/cli.md from the help texts of all commands, or check that it is up to date.

Run by ``make docs``; ``make check`` runs it with ``--check``.
"""

import contextlib
import difflib
import io
import os
import sys
from pathlib import Path

# Before anything asks for them: the layout of a help text depends on the terminal.
os.environ.update(COLUMNS="100", NO_COLOR="1")

from phi3v.cli import COMMANDS, main  # noqa: E402

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# The commands

Generated from the help texts by `make docs`; do not edit.
"""


def capture_help(*words: str) -> str:
    """Return what ``phi3v`` prints for these words."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    lines = [line.rstrip() for line in printed.getvalue().strip().splitlines()]
    if not lines:
        raise ValueError(f"phi3v {' '.join(words)} --help printed nothing")
    return "\n".join(lines)


def build_page() -> str:
    """Return the text of docs/cli.md."""
    parts = [INTRODUCTION, f"```\n{capture_help()}\n```\n"]
    for name in COMMANDS:
        parts.append(f"## phi3v {name}\n\n```\n{capture_help(name)}\n```\n")
    return "\n".join(parts)


def run(arguments: list[str]) -> int:
    """Write the page, or compare it when the arguments are ``--check``."""
    if sys.version_info >= (3, 13):
        print("docs/cli.md: skipped, argparse of Python 3.13 lays its help out differently")
        return 0
    page = build_page()
    if arguments != ["--check"]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    for line in difflib.unified_diff(found.splitlines(), page.splitlines(), "docs/cli.md", "help"):
        print(line)
    if found != page:
        print("docs/cli.md is out of date: run `make docs`")
    return int(found != page)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
