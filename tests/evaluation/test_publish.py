import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.evaluation.test_report import HOSTILE, write_run

from phi3v import cli
from phi3v.evaluation import publish
from phi3v.evaluation.publish import write_card


class FakeHub:
    """Stands for the Hub: keeps what it is sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.repositories[repo_id] = private
        return f"https://hub/{repo_id}"

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        commit_message: str,
    ) -> None:
        from huggingface_hub.utils import filter_repo_objects

        names = [
            str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()
        ]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            self.files[name] = (folder_path / name).read_bytes()

    def upload_file(
        self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, commit_message: str
    ) -> None:
        self.files[path_in_repo] = path_or_fileobj


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(publish, "HfApi", lambda: fake)
    return fake


@pytest.fixture
def whole(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "merged"))


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    from phi3v import load_model

    config = LoraConfig(r=2, target_modules=["qkv_proj"])
    get_peft_model(load_model(tiny_folder), config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "checkpoint-1").mkdir()
    (tmp_path / "adapter" / "checkpoint-1" / "adapter_model.safetensors").touch()
    return tmp_path / "adapter"


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---")[1]))


def test_the_card_says_parts_data_scores_and_licence(whole: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    card = write_card(whole, run=run, base_model="microsoft/Phi-3.5-vision-instruct").read_text()
    assert metadata(card) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["phi3_v", "vision", "phi3v"],
        "base_model": "microsoft/Phi-3.5-vision-instruct",
        "base_model_relation": "finetune",
    }
    for line in (
        "| metric | before | after |",
        "| anls | 50.0 % \\[25.0..75.0\\] | 50.0 % \\[25.0..75.0\\] |",
        "| plain | plain | 10 | 1,000 | 0.0001 |",
        "| plain | 7 | 8,638 |",
        "| learning_rate | 0.0001 |",
    ):
        assert line in card.splitlines(), card
    assert "/data/" not in card and str(tmp_path) not in card


def test_a_card_of_a_folder_alone(whole: Path) -> None:
    card = write_card(whole, license="apache-2.0").read_text()
    assert metadata(card)["license"] == "apache-2.0"
    assert "## Scores" not in card and "base_model" not in metadata(card)


def test_text_of_data_is_no_markup(whole: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", HOSTILE.replace("\x00", "").replace("/", ""))
    card = write_card(whole, run=run).read_text()
    body = card.split("---", 2)[2]
    assert "<script" not in body.replace("\\<", "")


def test_a_readme_of_somebody_else_is_kept(whole: Path) -> None:
    (whole / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_card(whole)
    write_card(whole, overwrite=True)
    write_card(whole)


def test_the_checkpoint_and_nothing_else_is_sent(
    whole: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole / "run.yaml").write_text("data_path: /home/me/data.json\n")
    (whole / "optimizer.pt").touch()
    words = ["card", str(whole), "--push_to_hub", "me/tiny", "--private"]
    assert cli.main(words) == 0
    assert hub.repositories == {"me/tiny": True}
    assert {"config.json", "tokenizer.json", "README.md"} <= set(hub.files)
    assert not {"run.yaml", "optimizer.pt"} & set(hub.files)
    assert b'load_model("me/tiny")' in hub.files["README.md"]
    assert capsys.readouterr().out.endswith("https://hub/me/tiny\n")


def test_an_adapter_that_is_sent_names_its_base_on_the_hub(adapter: Path, hub: FakeHub) -> None:
    kept = (adapter / "adapter_config.json").read_bytes()
    words = ["card", str(adapter), "--push_to_hub", "me/tiny", "--base_model", "them/base"]
    assert cli.main(words) == 0
    sent = json.loads(hub.files["adapter_config.json"])
    assert sent["base_model_name_or_path"] == "them/base"
    assert (adapter / "adapter_config.json").read_bytes() == kept
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    card = metadata(hub.files["README.md"].decode())
    assert card["base_model"] == "them/base" and card["library_name"] == "peft"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push_to_hub", "me/tiny"], "give the base's name on the Hub by --base_model"),
        (["--push_to_hub", "tiny"], "expected OWNER/NAME"),
        (["--private"], "--private needs --push_to_hub"),
        (["--base_model", "/home/base"], "expected OWNER/NAME"),
        (["--evaluation", "e"], "--evaluation needs --run"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(
    adapter: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["card", str(adapter), *words]) == 2
    assert message in capsys.readouterr().err
    assert not hub.files


def test_a_refusal_of_the_hub_is_told_in_a_line(
    whole: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: Any, **options: Any) -> None:
        raise OSError("no network\nand more")

    monkeypatch.setattr(hub, "create_repo", refuse)
    assert cli.main(["card", str(whole), "--push_to_hub", "me/tiny"]) == 2
    assert "me/tiny could not be sent to the Hub: no network\n" in capsys.readouterr().err


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        write_card(tmp_path)
