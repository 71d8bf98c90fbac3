"""Folders of strangers at the command line: one line about what is wrong, and nothing is run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hostile.opening import use_model, use_processor

from phi3v import load_processor
from phi3v.cli import main

CODE = "from pathlib import Path\nPath('harm').write_text('x')\n"


class Harm:
    """A pickle of it makes a file where it is opened."""

    def __reduce__(self) -> Any:
        return (open, ("harm", "w"))


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Harm()}, folder / "pytorch_model.bin")


def name_code(folder: Path) -> None:
    (folder / "evil.py").write_text(CODE)
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        auto = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoTokenizer": "evil.C"}
        edit(folder / name, auto_map=auto, custom_generate="evil", trust_remote_code=True)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "layers": lambda d: edit(d / "config.json", num_hidden_layers=10**12),
    "types": lambda d: edit(d / "config.json", rms_norm_eps=[]),
    "header": lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
    "pickle": pickle_weights,
}


COMMANDS = {"generate": ["--prompt", "Hello"], "serve": ["--port", "0"]}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    name: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    DAMAGES[damage](folder)
    assert main([name, "--model-path", str(folder), *COMMANDS[name]]) == 2
    error = capsys.readouterr().err
    assert f"phi3v {name}: error: " in error and "Traceback" not in error
    assert not Path("harm").exists()


def test_code_beside_a_model_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    name_code(folder)
    use_processor(folder)
    use_model(folder, load_processor(folder))
    assert not Path("harm").exists()


@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_state_dict.bin"])
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_of_an_adapter_is_not_run(
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    save: str,
) -> None:
    monkeypatch.chdir(adapter.parent)
    if file == "adapter_model.bin":
        (adapter / "adapter_model.safetensors").unlink()
    if save == "torch":
        torch.save({"weight": Harm()}, adapter / file)
    else:
        (adapter / file).write_bytes(pickle.dumps(Harm()))
    for words in (
        ["merge", "--model-path", str(adapter), "--save-model-path", "merged"],
        ["generate", "--model-path", str(adapter), "--prompt", "Hello"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "only tensors are read from a pickle" in error and "Traceback" not in error
    assert not Path("harm").exists() and not Path("merged").exists()
