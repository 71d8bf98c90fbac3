"""Opening and writing the processor's files; what its constructor refuses."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from phi3v.model import Phi3VImageProcessor, Phi3VProcessor
from phi3v.model.tokenizer import make_small_tokenizer

WIDE = Image.new("RGB", (80, 30), "blue")
QUESTION = "<|user|>\n<|image_1|>\nWhat?<|end|>\n<|assistant|>\n"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("name", ["p3", "p35"])
def test_published_folder_is_written_as_it_was_read(
    published_folders: Path, tmp_path: Path, name: str
) -> None:
    Phi3VProcessor.from_pretrained(published_folders / name).save_pretrained(tmp_path)
    expected = {*FILES, "preprocessor_config.json"}
    if name == "p35":
        expected.add("processor_config.json")
    assert {file.name for file in tmp_path.iterdir()} == expected
    for file in expected:
        saved = json.loads((tmp_path / file).read_text())
        published = json.loads((published_folders / name / file).read_text())
        added = {"do_convert_rgb": True} if file == "preprocessor_config.json" else {}
        assert saved == added | published, file


def test_saved_processor_gives_the_same_inputs(small: Phi3VProcessor, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    loaded = Phi3VProcessor.from_pretrained(tmp_path)
    expected = small(QUESTION, WIDE, return_tensors="pt")
    found = loaded(QUESTION, WIDE, return_tensors="pt")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_auto_classes_open_a_published_folder(published_folders: Path) -> None:
    folder = published_folders / "p35"
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is Phi3VProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is Phi3VImageProcessor
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(QUESTION)["input_ids"] == processor.tokenizer(QUESTION)["input_ids"]


def test_missing_files_are_named(small: Phi3VProcessor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no preprocessor_config.json"):
        Phi3VProcessor.from_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        Phi3VProcessor.from_pretrained(tmp_path)


def test_tokenizer_of_another_family_is_refused(small: Phi3VProcessor) -> None:
    backend = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(ValueError, match=r"tokenizer has no <\|image\|> token"):
        Phi3VProcessor(small.image_processor, tokenizer)


def test_other_chat_template_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_small_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    Phi3VProcessor(Phi3VImageProcessor(), tokenizer)
    assert "chat template differs" in caplog.text


def test_upload_while_saving_is_refused(small: Phi3VProcessor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call push_to_hub"):
        small.save_pretrained(tmp_path, push_to_hub=True)
