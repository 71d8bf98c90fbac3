"""The steps of docs/serving.md, as far as they run here."""

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from tests.conftest import ROOT
from tests.inference.serving import run_api

from phi3v.cli import COMMANDS
from phi3v.evaluation.publish import main as card
from phi3v.inference.serve import build_parser
from phi3v.inference.service import Service
from phi3v.model.loading import load_model, load_processor
from phi3v.model.processing import Phi3VProcessor

GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", GUIDE, flags=re.DOTALL)[1:2])


def test_the_example_of_the_api_runs(
    model: Any,
    processor: Phi3VProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.effect_noise((60, 40), 50).save(tmp_path / "receipt.png")
    monkeypatch.chdir(tmp_path)
    with run_api(Service(model, processor, "tiny")) as url:
        code = BLOCKS["python"]
        assert "http://127.0.0.1:8000" in code
        exec(code.replace("http://127.0.0.1:8000", url), {})
    assert capsys.readouterr().out.strip()


def test_every_flag_of_the_guide_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        card(["--help"])
    known = build_parser().format_help() + capsys.readouterr().out
    missing = [flag for flag in set(re.findall(r"--[a-z][\w-]+", GUIDE)) if flag not in known]
    assert not missing
    assert set(re.findall(r"phi3v ([a-z]+)", GUIDE)) <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_model_is_served(tiny_folder: Path, quantization: Any) -> None:
    model = load_model(tiny_folder, quantization=quantization)
    with run_api(Service(model, load_processor(tiny_folder), "tiny")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        reply = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hm"}], max_tokens=5
        )
    assert reply.usage is not None and reply.usage.completion_tokens > 0
