import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.inference.test_questions import RECORDS, write

from phi3v.cli import main
from phi3v.inference.generate import build_parser, split_paths
from phi3v.model.flags import choose_device
from phi3v.model.loading import load_model, load_processor

Generate = Callable[..., tuple[int, str, str]]
SEED_FLAGS = """--model-path m --model-base b --image-file a.png --max-frames 3 --device cpu
--load-8bit --load-4bit --disable_flash_attention --temperature 0.2 --repetition-penalty 1.1
--max-new-tokens 9 --debug"""


@pytest.fixture
def generate(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    def run(*words: object, model: Path = tiny_folder) -> tuple[int, str, str]:
        flags = ["--model-path", model, "--max-new-tokens", 8, "--device", "cpu", *words]
        status = main(["generate", *map(str, flags)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_every_flag_of_the_seed_has_both_spellings() -> None:
    hyphens = SEED_FLAGS.replace("disable_flash", "disable-flash").replace("_", "-").split()
    underscores = [
        word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word
        for word in hyphens
    ]
    parse = build_parser().parse_args
    assert parse(hyphens) == parse(underscores) == parse(SEED_FLAGS.split())


def test_a_prompt_gives_the_answer_alone_on_standard_output(
    generate: Generate, tiny_folder: Path
) -> None:
    processor = load_processor(tiny_folder)
    inputs = processor("<|user|>\nHello<|end|>\n<|assistant|>\n", return_tensors="pt")
    ids = load_model(tiny_folder).generate(**inputs, max_new_tokens=8, do_sample=False)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(new_ids, skip_special_tokens=True).strip()
    assert generate("--prompt", "Hello")[:2] == (0, expected + "\n")


@pytest.mark.parametrize("form", ["words", "comma", "twice"])
def test_two_images_in_every_form_of_the_flag(
    generate: Generate, media_folder: Path, form: str
) -> None:
    wide, tall = media_folder / "wide.png", media_folder / "tall.png"
    flags = {
        "words": ["--image-file", wide, tall],
        "comma": ["--image-file", f"{wide}, {tall}"],
        "twice": ["--image-file", wide, "--image_file", tall],
    }[form]
    status, _, err = generate(*flags, "--prompt", "Which?", "--debug")
    assert status == 0
    assert "<|user|>\n<|image_1|>\n<|image_2|>\nWhich?<|end|>" in err


def test_a_comma_in_the_name_of_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a, b.png").touch()
    assert split_paths([f"{tmp_path}/a, b.png", "c.png,", "d.png"]) == [
        f"{tmp_path}/a, b.png", "c.png", "d.png",
    ]  # fmt: skip


def test_a_video_among_the_image_files(generate: Generate, media_folder: Path) -> None:
    flags = ["--image-file", media_folder / "clip.mkv", "--max-frames", 2]
    status, _, err = generate(*flags, "--prompt", "What?", "--debug")
    assert (status, "<|image_2|>\nWhat?" in err) == (0, True)


def test_num_crops_changes_the_tokens_of_a_picture(generate: Generate, media_folder: Path) -> None:
    flags = ["--image-file", media_folder / "wide.png", "--prompt", "What?", "--debug"]
    assert "1 picture(s) of 73)" in generate(*flags)[2]
    assert "1 picture(s) of 41)" in generate(*flags, "--num-crops", 1)[2]


def test_without_a_prompt_it_is_a_chat(
    generate: Generate, media_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"hello\n/image {media_folder / 'none.png'}\nagain\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status, out, err = generate("--image-file", media_folder / "wide.png")
    assert (status, out.count("\n") >= 2, "error:" in err) == (0, True, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--output", "x"], "--output needs --input"),
        (["--input", "x"], "--input needs --output"),
        (["--input", "x", "--output", "y", "--prompt", "a"], "--prompt cannot stand beside"),
        (["--input", "x", "--output", "./x"], "are the same file"),
        (["--load-8bit", "--load-4bit"], "exclude each other"),
        (
            ["--compile", "--device", "cpu"],
            "--compile needs a CUDA device, but the model is loaded",
        ),
        (["--max-frames", "0"], "--max-frames is 0"),
        (["--top-p", "0.5"], "top_p 0.5 has no effect"),
        (["--prompt", "a", "--image-file", "none.png"], "none.png does not exist"),
        (["--prompt", "a", "--num-crops", "17"], "num_crops"),
        (["--prompt", "a", "--device", "cuda:99"], "'cuda:99', but . CUDA device"),
        (["--prompt", "a", "--device", "gpu"], "'gpu'; expected cpu, cuda"),
        (["--prompt", "a", "--model-base", "x"], "is a whole model and not an adapter"),
        (
            ["--disable-flash-attention", "--attn-implementation", "flash_attention_2"],
            "contradicts",
        ),
    ],
)
def test_a_fault_is_one_line(generate: Generate, flags: list[str], message: str) -> None:
    status, out, err = generate(*flags)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_the_default_device_is_the_best_there_is() -> None:
    assert choose_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")


def test_turning_flash_attention_off_means_sdpa(
    generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate("--prompt", "a", "--disable_flash_attention")[0] == 0
    assert "runs with sdpa" in caplog.text


def test_a_file_of_questions_becomes_a_file_of_answers(
    generate: Generate, media_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "out.jsonl"
    flags = ["--input", write(tmp_path / "in.jsonl", RECORDS), "--output", output]
    flags += ["--image-folder", media_folder, "--batch-size", 3]
    assert generate(*flags)[0] == 0
    first = output.read_text()
    assert [json.loads(line)["id"] for line in first.splitlines()] == [7, "two", "clip", 3, "open"]
    assert generate(*flags)[0] == 2
    output.write_text("".join(first.splitlines(keepends=True)[:2]))
    assert "3 answers written" in generate(*flags, "--resume")[2]
    assert output.read_text() == first
    assert "0 answers written" in generate(*flags, "--resume")[2]
    assert "5 answers written" in generate(*flags, "--overwrite")[2]
    assert output.read_text() == first


def test_an_adapter_folder_answers_whatever_its_name(
    generate: Generate, adapter_folder: Path, tmp_path: Path
) -> None:
    plain, adapted = generate("--prompt", "Hi")[1], generate("--prompt", "Hi", model=adapter_folder)
    assert adapted[0] == 0
    assert adapted[1] != plain
    renamed = shutil.copytree(adapter_folder, tmp_path / "Phi-3.5-final")
    assert generate("--prompt", "Hi", model=renamed)[1] == adapted[1]


def test_model_base_stands_in_for_a_base_that_moved(
    generate: Generate, adapter_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/gone/base"
    (moved / "adapter_config.json").write_text(json.dumps(config))
    status, _, err = generate("--prompt", "Hi", model=moved)
    assert (status, "/gone/base" in err) == (2, True)
    expected = generate("--prompt", "Hi", model=adapter_folder)[1]
    assert generate("--prompt", "Hi", "--model-base", tiny_folder, model=moved)[1] == expected


@pytest.mark.slow
def test_a_chat_through_a_pipe(tiny_folder: Path, media_folder: Path) -> None:
    command = [sys.executable, "-m", "phi3v", "generate", "--model-path", str(tiny_folder)]
    lines = (
        f"hello\n/image {media_folder / 'broken.png'}\n/video {media_folder / 'clip.mkv'}\nwhat?\n"
    )
    done = subprocess.run(
        [*command, "--max-new-tokens", "5"], input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "is not a picture" in done.stderr
    assert "3 frames" in done.stderr
