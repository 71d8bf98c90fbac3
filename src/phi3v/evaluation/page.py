"""The one builder of pages: a document that needs nothing else, and the pieces it is made of.

A page has no script and no reference to anything outside itself, so it can be mailed or opened from
a disk. Functions here take plain text and escape it, unless they say that they take HTML.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from phi3v.evaluation.markup import escape

LONGEST_ANSWER = 300  # characters shown; an untrained model may ramble on


class AnswerLine(NamedTuple):
    """One answer of a card.

    Attributes:
        name: Whose it is.
        text: The answer.
        is_right: Whether all of it is right; None leaves the mark out.
        mark: What the mark says.
    """

    name: str
    text: str
    is_right: bool | None = None
    mark: str = ""


def document(title: str, body: str) -> str:
    """Build the whole document around the HTML of its body."""
    css = resources.files("phi3v.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def section(title: str, body: str) -> str:
    """Put a heading above the HTML of a body; a reader can jump from one section to the next."""
    name = escape(title)
    return f'<section aria-label="{name}"><h2>{name}</h2>{body}</section>'


def panel(body: str) -> str:
    """Frame a piece of HTML."""
    return f'<div class="panel">{body}</div>'


def facts(pairs: Mapping[str, str]) -> str:
    """List what things are called and what they are."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[str] = (), name: str = ""
) -> str:
    """Build a table whose first column names the rows.

    It scrolls by itself where it is wider than the screen.

    Args:
        head: Names of the columns.
        rows: Cells; a second line of a cell, after a line break, is shown small.
        foot: Cells of a last row.
        name: What the table is, for those who do not see it.
    """
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(_row(row) for row in rows)
    end = f"<tfoot>{_row(foot)}</tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name or head[0])}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>{end}</table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{escape(first)}</th>{"".join(map(_cell, others))}</tr>'


def _cell(text: str) -> str:
    main, _, more = text.partition("\n")
    small = f'<span class="soft small">{escape(more)}</span>' if more else ""
    return f'<td><span class="main">{escape(main)}</span>{small}</td>'


def command_lines(words: Sequence[str]) -> str:
    """Show a command as it can be pasted into a shell, one flag on a line.

    Args:
        words: The command and its flags, each with its values, quoted for the shell.
    """
    shown = " \\\n  ".join(words)
    return f'<pre class="command">{escape(shown)}</pre>'


def bars(values: Sequence[tuple[str, float, str]]) -> str:
    """Draw shares as bars: name, share from 0 to 1, and how to write it; the last stands out."""
    last = len(values) - 1
    rows = "".join(
        f'<div><dt>{escape(name)}</dt><dd><span class="bar{" after" * (place == last)}" '
        f'style="width:{100 * min(max(share, 0), 1):.1f}%"></span></dd>'
        f"<dd>{escape(shown)}</dd></div>"
        for place, (name, share, shown) in enumerate(values)
    )
    return f'<dl class="bars">{rows}</dl>'


def cards(items: Sequence[str]) -> str:
    """Lay cards out side by side, as many as the screen is wide."""
    return f'<ul class="samples">{"".join(items)}</ul>'


def card(
    pictures: Sequence[tuple[str, str]], question: str, expected: str, answers: Sequence[AnswerLine]
) -> str:
    """Build a card of one sample.

    Args:
        pictures: `data:` URIs, each with its description in words.
        question: What was asked.
        expected: The right answer.
        answers: What was answered.
    """
    images = "".join(f'<img src="{uri}" alt="{escape(alt)}">' for uri, alt in pictures)
    lines = "".join(map(_answer, answers))
    kind = "sample" if pictures else "sample text-only"
    return (
        f'<li class="panel {kind}">{f"<div class=pictures>{images}</div>" if images else ""}'
        f'<div><p class="question"><bdi>{escape(shorten(question))}</bdi></p><dl><div>'
        f'<dt>expected</dt><dd><bdi class="answer">{escape(shorten(expected))}</bdi></dd></div>'
        f"{lines}</dl></div></li>"
    )


def _answer(line: AnswerLine) -> str:
    mark = ""
    if line.is_right is not None:
        kind = "right" if line.is_right else "wrong"
        mark = f'<span class="mark {kind}">{escape(line.mark)}</span>'
    text = escape(shorten(line.text))
    shown = text if line.text.strip() else '<span class="soft">(nothing)</span>'
    return (
        f'<div><dt>{escape(line.name)}</dt><dd>{mark}<bdi class="answer">{shown}</bdi></dd></div>'
    )


def shorten(text: str) -> str:
    """Cut a long text off."""
    return text if len(text) <= LONGEST_ANSWER else text[:LONGEST_ANSWER] + "…"
