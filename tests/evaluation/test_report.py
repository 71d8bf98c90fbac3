import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.evaluation.conftest import write_lines
from tests.evaluation.reading import HOSTILE, Reader

from phi3v import cli
from phi3v.evaluation.report import write_report

SCORE = {"score": 0.5, "low": 0.25, "high": 0.75}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(folder: Path, text: str = "plain") -> Path:
    """Write the files of a run with an evaluation; `text` stands wherever data or models speak."""
    folder.mkdir(parents=True)
    flags = {"model_id": text, "learning_rate": 1e-4, "data_path": text, "report_to": [text]}
    (folder / "run.yaml").write_text(yaml.safe_dump(flags))
    part = {"part": text, "method": text, "trainable": 10, "total": 1000, "learning_rate": 1e-4}
    write_json(folder / "parts.json", [part])
    history = [{"step": n, "loss": 3 / n, "learning_rate": 1e-4 / n} for n in (1, 2, 3)]
    history.append({"step": 3, "eval_loss": 1.5, "eval_anls": 0.75})
    write_json(folder / "trainer_state.json", {"log_history": history})
    described = {"count": 7, "mean": 1234, "p50": 1200, "p95": 1300, "max": 1400, "total": 8638}
    write_json(folder / "data.json", {text: {"records": 7, "bad": 1, "tokens": described}})
    summary = {"seconds": 61.2, "processes": 2, "tokens": 5, "supervised_tokens": 3, "padding": 0}
    summary |= {"steps": 3, "peak_memory_gb": 10.0, "memory_of": text, "versions": {text: text}}
    write_json(folder / "summary.json", summary)
    write_json(folder / "plan.json", {"peak_memory_gb": 11.0, "memory_gb": {text: 4.0}})
    write_evaluation(folder / "evaluation" / "val", text)
    return folder


def write_evaluation(folder: Path, text: str) -> None:
    scores = {"anls": SCORE, "exact_match": {"score": 0.1, "low": 0.0, "high": 0.3}}
    counts = {"rows": [text, "b"], "columns": [text, "b", "(other)"], "counts": [[1, 2, 3]] * 2}
    found = {"data": f"/data/{text}", "questions": 2, "metrics_because": text}
    found |= {"scores": {"base": scores, "model": scores}, "gains": scores}
    write_json(folder / "scores.json", found | {"confusion": {"model": counts}})
    sample = {"id": text, "prompt": f"<image>\n{text}", "reference": [text, text], "answer": text}
    sample |= {"scores": {"anls": 0.0}, "base_answer": text, "base_scores": {"anls": 0.6}}
    (folder / "gallery").mkdir()
    Image.effect_noise((300, 200), 50).save(folder / "gallery" / "0-0.jpg")
    pictures = ["gallery/0-0.jpg", "../../parts.json", text]
    lines = [
        sample | {"shown": "worst", "pictures": pictures},
        sample | {"shown": "changed", "pictures": [], "scores": {"anls": 1.0}, "answer": ""},
        sample,
    ]
    write_lines(folder / "samples.jsonl", lines)


def read(file: Path) -> tuple[str, Reader]:
    document = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(document)
    assert not reader.open
    return document, reader


def test_the_page_shows_what_was_found(tmp_path: Path) -> None:
    _, reader = read(write_report(write_run(tmp_path / "run")))
    shown = " ".join(reader.text.split())
    for text in (
        *("Run run", "50.0 %", "[25.0..75.0]", "+50.0", "Worst answers", "Most changed", "60.0 %"),
        *("✗ wrong", "✓ right", "(nothing)", "1,234", "10.00 GB", "11.00 GB", "+10 %"),
        *("61 s on 2 process(es)", "phi3v train", "--learning_rate 0.0001", "plain"),
    ):
        assert text in shown, text
    labels = [attributes.get("aria-label") or "" for tag, attributes in reader.tags if tag == "svg"]
    assert any("from 3 at step 1 to 1 at step 3" in label for label in labels)
    assert any("anls by training step" in label.lower() for label in labels)


def test_hostile_text_is_escaped_in_every_field(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", HOSTILE.replace("\x00", ""))
    document, reader = read(write_report(folder, title=HOSTILE))
    assert not {"script", "iframe", "object", "link"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    sources = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    assert "\u202e" not in document and "\x00" not in document
    # The text itself is there, to be read.
    assert reader.text.count("<script>alert(1)</script>") > 15


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    document, _ = read(write_report(write_run(tmp_path / "run")))
    assert not re.search(r"https?://|src=\"(?!data:)|url\(", document)
    assert "default-src 'none'" in document


def test_pictures_have_descriptions_and_sections_have_names(tmp_path: Path) -> None:
    _, reader = read(write_report(write_run(tmp_path / "run")))
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert [one["alt"] for one in images] == [
        "Picture 1 of 3 of sample plain; expected answer: plain or plain"
    ]
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("main") == tags.count("h1") == 1
    sections = [attributes for tag, attributes in reader.tags if tag == "section"]
    assert len(sections) > 5 and all(one.get("aria-label") for one in sections)
    assert dict(reader.tags[0][1])["lang"] == "en"


def test_a_run_without_anything_else_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("model_id: base\n")
    _, reader = read(write_report(tmp_path / "run"))
    assert "No scores yet" in reader.text
    assert "Nothing was measured" in reader.text


def test_evaluations_while_training_stand_in(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "evaluation")
    for step, answer in (("step-000000", "early"), ("step-000100", "late")):
        target = folder / "answers" / step
        scores = {"model": {"anls": SCORE}}
        write_json(target / "scores.json", {"data": "val.json", "scores": scores})
        sample = {"id": 1, "prompt": "Q", "reference": "R", "answer": answer, "shown": "worst"}
        write_lines(target / "samples.jsonl", [sample | {"scores": {"anls": 0.0}}])
    _, reader = read(write_report(folder))
    assert "early" in reader.text and "late" in reader.text
    assert "Scores on val.json" in reader.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("parts.json", "{", "parts.json is damaged"),
        ("parts.json", "{}", "another kind of JSON"),
        ("run.yaml", "a: [", "run.yaml is damaged"),
        ("evaluation/val/samples.jsonl", "{", "samples.jsonl is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(folder)


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run of phi3v train" in capsys.readouterr().err


def test_other_evaluations_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluation(tmp_path / "elsewhere", "other")
    words = ["--evaluation", str(tmp_path / "elsewhere"), "--output", str(tmp_path / "page.html")]
    assert cli.main(["report", str(folder), *words]) == 0
    assert "written to" in capsys.readouterr().out
    assert "Scores on other" in read(tmp_path / "page.html")[1].text
    with pytest.raises(FileNotFoundError, match="holds no finished evaluation"):
        write_report(folder, evaluations=[tmp_path])


def test_an_evaluation_and_its_pictures_come_into_the_page(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    evaluate("--metrics", "anls")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("model_id: base\n")
    file = write_report(run, evaluations=[tmp_path / "out"])
    document, reader = read(file)
    assert "What happens?" in reader.text and "<image>" not in reader.text
    assert document.count("data:image/jpeg;base64,") >= 5
    assert file.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_a_fault(tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    file = write_report(write_run(tmp_path / "run", HOSTILE.replace("\x00", "")))
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(file.as_uri())
        # Nothing sticks out at the side; wide tables scroll by themselves.
        assert page.evaluate("document.documentElement.scrollWidth") == width
        ratios = page.evaluate(CONTRASTS)
        browser.close()
    assert not faults
    assert len(ratios) > 20 and min(ratios) >= 4.5


# WCAG contrast of every element with text of its own against the first opaque ground behind it.
CONTRASTS = """() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("main *")]
    .filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(one => {
      const style = getComputedStyle(one);
      const ink = parse(one instanceof SVGElement ? style.fill : style.color);
      const [a, b] = [light(ink), light(ground(one))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
}"""
