"""The command ``phi3v report``: one page about a run, in one file that needs nothing else."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3v.evaluation.curve import curve_svg
from phi3v.evaluation.markup import escape
from phi3v.evaluation.metrics import METRICS
from phi3v.evaluation.page import command_lines, document, facts, panel, section, table
from phi3v.evaluation.report_scores import gallery_section, score_section
from phi3v.evaluation.run_files import RunFiles, before_and_after, read_run
from phi3v.evaluation.writing import versions
from phi3v.model.durable import write_text

REPORT_FILE = "report.html"
_LOGGED = (("loss", "loss"), ("learning_rate", "learning rate"),
           ("tokens_per_second", "tokens per second"))  # fmt: skip
_COUNTS = (
    ("tokens", "tokens per sample"),
    ("supervised_tokens", "answer tokens per sample"),
    ("pictures_per_record", "pictures per sample"),
    ("crops_per_record", "crops per sample"),
    ("picture_width", "picture width"),
    ("picture_height", "picture height"),
)


def build_report(run: RunFiles, title: str) -> str:
    """Build the page of a run.

    Args:
        run: What is known of it.
        title: Title and heading.

    Returns:
        The HTML document.
    """
    shown = list(run.evaluations)
    if not shown and (joined := before_and_after(run.steps)):
        shown = [joined]
    body = [_lead(run)]
    body += [score_section(one) for one in shown]
    if not shown:
        body.append(section("Scores", panel(_no_scores(run))))
    body.append(section("What was trained", panel(_parts(run.parts))))
    body += [gallery_section(one) for one in shown]
    body.append(section("Curves", _curves(run.history)))
    body.append(section("Data", _data(run.data)))
    body.append('<div class="pair">')
    body.append(section("Memory", panel(_memory(run))))
    body.append(section("The run", panel(_the_run(run))))
    body.append("</div>")
    body.append(section("The command", panel(command_lines(run.command()))))
    return document(title, "\n".join(body))


def _lead(run: RunFiles) -> str:
    base = str(run.flags.get("model_id", "an unknown base"))
    methods = ", ".join(
        f"{row['part']} ({row['method']})" for row in run.parts if row.get("trainable")
    )
    steps = run.summary.get("steps") or max((int(e.get("step", 0)) for e in run.history), default=0)
    text = f"{base}, {steps} steps. Trained: {methods or 'see below'}."
    return f'<p class="soft">{escape(text)}</p>'


def _no_scores(run: RunFiles) -> str:
    command = f"phi3v evaluate --model-path {run.folder} --data-path DATA --image-folder IMAGES"
    return (
        f"<p>No scores yet. This command adds them, then write the report again:</p>"
        f'<p class="answer">{escape(command)}</p>'
    )


def _parts(parts: Sequence[Mapping[str, Any]]) -> str:
    if not parts:
        return "<p>The table of parts is missing.</p>"
    rows = []
    for row in parts:
        rate = row.get("learning_rate")
        trainable, total = int(row["trainable"]), int(row["total"])
        rows.append(
            [
                str(row["part"]),
                str(row["method"]),
                f"{trainable:,}\nof {total:,}",
                f"{rate:.3g}" if trainable and isinstance(rate, int | float) else "-",
            ]
        )
    sums = [sum(int(row[name]) for row in parts) for name in ("trainable", "total")]
    foot = ["all", "", f"{sums[0]:,}\nof {sums[1]:,}", ""]
    return table(["part", "method", "parameters", "rate"], rows, foot, "Parts")


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    panels = []
    for key, name in _LOGGED:
        points = _points(history, key)
        marks = _points(history, f"eval_{key}")
        body = curve_svg(points, name=name, smooth=key == "loss", marks=marks)
        if key == "loss":
            more = " Dots: validation." if marks else ""
            body += (
                f'<p class="soft small">Thin line: as logged. Thick line: running mean.{more}</p>'
            )
        panels.append(panel(body))
    for key in _task_metrics(history):
        points = _points(history, key)
        body = curve_svg(points, name=key.removeprefix("eval_"), marks=points)
        panels.append(panel(body))
    return f'<div class="pair">{"".join(panels)}</div>'


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [
        (int(line["step"]), float(line[key]))
        for line in history
        if isinstance(line.get(key), int | float) and "step" in line
    ]


def _task_metrics(history: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {key: None for line in history for key in line}
    return [key for key in found if key.removeprefix("eval_") in METRICS]


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return panel("<p>The records were not counted (--check_data False).</p>")
    panels = []
    for name, numbers in data.items():
        rows = [
            [label, *(f"{numbers[key][column]:,}" for column in ("mean", "p50", "p95", "max"))]
            for key, label in _COUNTS
            if numbers.get(key, {}).get("count")
        ]
        bad = numbers.get("bad", 0)
        text = f"{name}: {numbers.get('records', 0):,} records, {bad:,} of them left out as bad or "
        text += f"too long; {numbers.get('tokens', {}).get('total', 0):,} tokens"
        head = ["", "mean", "half up to", "95 % up to", "most"]
        panels.append(panel(f"<p>{escape(text)}</p>{table(head, rows, name=f'Data: {name}')}"))
    return f'<div class="pair">{"".join(panels)}</div>'


def _memory(run: RunFiles) -> str:
    measured = run.summary.get("peak_memory_gb")
    lines = {}
    if measured is not None:
        lines["measured peak"] = f"{measured:.2f} GB ({run.summary.get('memory_of', '')})"
    predicted = run.plan.get("peak_memory_gb")
    if isinstance(predicted, int | float):
        lines["predicted peak"] = f"{predicted:.2f} GB"
        if measured:
            lines["difference"] = f"{100 * (predicted - measured) / measured:+.0f} %"
    for name, value in run.plan.get("memory_gb", {}).items():
        if isinstance(value, int | float):
            lines[f"predicted: {name}"] = f"{value:.2f} GB"
    if not lines:
        return "<p>Nothing was measured.</p>"
    note = "" if run.plan else '<p class="soft small">No prediction: the run has no plan.json.</p>'
    return facts(lines) + note


def _the_run(run: RunFiles) -> str:
    summary = run.summary
    lines = {}
    if summary:
        lines["time"] = f"{summary['seconds']:,.0f} s on {summary['processes']} process(es)"
        lines["tokens"] = (
            f"{summary['tokens']:,}, {summary['supervised_tokens']:,} of them supervised; "
            f"{summary['padding']:.1%} of the places were padding"
        )
    found = summary.get("versions") or versions()
    lines["versions"] = ", ".join(f"{name} {version}" for name, version in found.items())
    lines["folder"] = str(run.folder)
    return facts(lines)


def write_report(
    folder: Path,
    *,
    output: Path | None = None,
    evaluations: Sequence[Path] = (),
    title: str | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        folder: Output folder of ``phi3v train``.
        output: File to write; report.html in the folder if left out.
        evaluations: Folders of ``phi3v evaluate``; those in the folder if none are given.
        title: Title; the name of the folder if left out.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no run, or no evaluation in a folder that is named.
        ValueError: A file of the run is damaged.
    """
    run = read_run(folder, evaluations)
    page = build_report(run, title or f"Run {folder.resolve().name}")
    output = output or folder / REPORT_FILE
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page.encode("utf-8", "replace").decode("utf-8"))
    return output


def main(argv: list[str]) -> int:
    """Run ``phi3v report``."""
    parser = argparse.ArgumentParser(
        prog="phi3v report",
        description="Write one page about a run: what was trained, curves, scores before and "
        "after, answers with their pictures. One HTML file that needs no network.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="output folder of phi3v train")
    parser.add_argument(
        "--evaluation", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="folders of phi3v evaluate; default: all in RUN/evaluation",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN/report.html")
    parser.add_argument("--title", help="default: the name of the folder")
    flags = parser.parse_args(argv)
    file = write_report(
        flags.run, output=flags.output, evaluations=flags.evaluation, title=flags.title
    )
    print(f"written to {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0
