"""The command ``phi3v check``: finds records that training could not use, and counts tokens."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.logging import tqdm

from phi3v.data.check_report import print_findings, print_report
from phi3v.data.histogram import draw_png
from phi3v.data.inspection import Finding, InspectionSettings
from phi3v.data.joined import MixedRecords
from phi3v.data.media_flags import add_media_flags, media_options
from phi3v.data.records import RawRecords
from phi3v.data.references import as_address
from phi3v.data.sources import look, open_records
from phi3v.data.statistics import overlap, statistics
from phi3v.data.survey import Survey, survey_records
from phi3v.model.loading import load_config, load_processor
from phi3v.model.processing import Phi3VProcessor


def build_parser() -> argparse.ArgumentParser:
    """Describe the flags; those that training has, too, mean the same there."""
    parser = argparse.ArgumentParser(
        prog="phi3v check",
        description="Find every record that training could not use, and count tokens exactly. "
        "Exit status: 0 if all records are good, 1 if some are bad, 2 for an error of usage.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="records as for training")
    add("--model_id", required=True, help="checkpoint whose processor counts the tokens")
    add("--image_folder", help="folder that picture and video paths are relative to")
    add("--eval_data_path", help="validation records: checked, too, and compared")
    add("--eval_image_folder", help="folder of their media; default: --image_folder")
    add("--num_crops", type=int, default=16, help="most crops of a picture (%(default)s)")
    add("--max_num_frames", type=int, default=10, help="most frames of a video (%(default)s)")
    add("--max_seq_length", type=int, default=131072, help="longest sample (%(default)s)")
    add("--batch_size", type=int, default=8, help="for the share of padding (%(default)s)")
    add("--pack_tokens", type=int, default=8192, help="for the share of packing (%(default)s)")
    add("--deep", action="store_true", help="decode all media, not only read their headers")
    add("--workers", type=int, help="processes; default: one per core")
    add("--json", metavar="OUT", help="write all findings and numbers")
    add("--write-clean", "--write_clean", metavar="OUT", help="write the good records")
    add("--plot", metavar="PNG", help="write the histogram as a picture")
    add("--show", type=int, default=5, help="records of each kind that are printed (%(default)s)")
    add_media_flags(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``phi3v check``."""
    flags = build_parser().parse_args(argv)
    _refuse_contradictions(flags)
    processor = load_processor(flags.model_id, num_crops=flags.num_crops)
    rotary_switch = load_config(flags.model_id).original_max_position_embeddings
    records, survey = _survey(flags.data, flags.image_folder, processor, flags)
    report = {"data": flags.data} | statistics(
        survey,
        max_seq_length=flags.max_seq_length,
        rotary_switch=rotary_switch,
        batch_size=flags.batch_size,
        pack_tokens=flags.pack_tokens,
    )
    report["problems"] = [_as_json(finding, records) for finding in survey.listed()]
    print_findings(flags.data, survey, flags.show)
    if flags.eval_data_path:
        folder = flags.eval_image_folder or flags.image_folder
        held_out, validation = _survey(flags.eval_data_path, folder, processor, flags)
        print()
        print_findings(flags.eval_data_path, validation, flags.show)
        report["eval"] = {
            "data": flags.eval_data_path,
            "records": len(validation),
            "bad": int((~validation.is_good()).sum()),
            "overlap": overlap(survey, validation),
            "problems": [_as_json(one, held_out) for one in validation.listed()],
        }
    lengths = survey.lengths[survey.is_good()]
    print_report(report, lengths)
    _write_files(flags, report, records, survey, rotary_switch)
    return int(report["bad"] + report.get("eval", {"bad": 0})["bad"] > 0)


def _write_files(
    flags: argparse.Namespace,
    report: dict[str, Any],
    records: RawRecords,
    survey: Survey,
    rotary_switch: int,
) -> None:
    good = survey.is_good()
    if flags.plot:
        marks = [(flags.max_seq_length, "max_seq_length"), (rotary_switch, "rope switch")]
        title = f"{Path(flags.data).name}: {int(good.sum()):,} good records"
        lengths = survey.lengths[good]
        draw_png(lengths, flags.plot, title=title, axis="tokens per sample", marks=marks)
        print(f"wrote {flags.plot}")
    if flags.json:
        text = json.dumps(report, ensure_ascii=False, indent=2)
        Path(flags.json).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        print(f"wrote {flags.json}")
    if flags.write_clean:
        write_clean(records, np.flatnonzero(good), flags.data, flags.write_clean)
        print(f"wrote {flags.write_clean}: {int(good.sum()):,} records")
    elif report["bad"]:
        print("to go on with the good records: --write-clean FILE")


def _refuse_contradictions(flags: argparse.Namespace) -> None:
    for name in ("max_num_frames", "max_seq_length", "batch_size", "pack_tokens", "workers"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected at least 1")
    for folder in (flags.image_folder, flags.eval_image_folder):
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"image folder {folder} does not exist; check the path")
    if flags.write_clean and Path(flags.data).is_file() and look(Path(flags.data)) == "yaml":
        raise ValueError(
            f"--write_clean: {flags.data} is a list of sources with folders of their own; check "
            "and clean them one by one"
        )
    inputs = {Path(path).resolve() for path in (flags.data, flags.eval_data_path) if path}
    for name in ("json", "write_clean", "plot"):
        out = getattr(flags, name)
        if out and Path(out).resolve() in inputs:
            raise ValueError(f"--{name} {out} is a data file itself; name another file")
        if out and not Path(out).absolute().parent.is_dir():
            raise FileNotFoundError(f"--{name} {out}: its folder does not exist; make it first")


def _survey(
    path: str, folder: str | None, processor: Phi3VProcessor, flags: argparse.Namespace
) -> tuple[RawRecords, Survey]:
    records = open_records(path, folder)
    settings = InspectionSettings(
        flags.max_seq_length,
        flags.max_num_frames,
        media_options(flags),
        flags.deep,
    )
    # Without a terminal, the bar is left out.
    with tqdm(total=len(records), desc=Path(path).name, unit="record", disable=None) as bar:
        survey = survey_records(
            records, processor, settings, num_workers=flags.workers, progress=bar.update
        )
    if isinstance(records, MixedRecords):
        # What a weight repeats was asked for: it is not reported as a duplicate.
        survey.content_keys[records.repeats()] = 0
    return records, survey


def _as_json(finding: Finding, records: RawRecords) -> dict[str, Any]:
    place = records.place(finding.index)
    where = {"file": place.file, "line": place.line or None, "file_index": place.index}
    return where | asdict(finding) | {"bad": finding.is_bad}


def write_clean(records: RawRecords, keep: np.ndarray, source: str, target: str) -> None:
    """Write some of the records: as an array if the source is one, otherwise as lines.

    Embedded pictures are written in base64.

    Args:
        records: Raw records.
        keep: Ascending indices of those to write.
        source: What they come from.
        target: File to write.
    """
    is_array = False
    if Path(source).is_file() and look(Path(source)) == "json":
        with open(source, encoding="utf-8-sig") as file:
            is_array = file.read(4096).lstrip().startswith("[")
    with open(target, "w", encoding="utf-8") as file:
        if is_array:
            file.write("[\n")
        for number, index in enumerate(keep.tolist()):
            file.write((",\n" if is_array else "\n") if number else "")
            file.write(json.dumps(records[index], ensure_ascii=False, default=as_address))
        file.write("\n]\n" if is_array else "\n")
