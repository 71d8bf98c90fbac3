"""The published tokenizer as it is loaded and saved, and the small one that follows its rules."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from phi3v.model.tokenizer import load_tokenizer, make_small_tokenizer, save_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(params=["p3", "p35"])
def published(request: pytest.FixtureRequest, published_folders: Path) -> Path:
    return published_folders / request.param


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerFast:
    return make_small_tokenizer()


def test_published_ids_and_texts(golden: Path, published: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text())["cases"]
    items = next(case for case in cases if case["kind"] == "tokenizer")["items"]
    tokenizer = load_tokenizer(published)
    for item in items:
        text, ids = item["text"], item["ids_no_special"]
        assert tokenizer(text)["input_ids"] == item["ids"], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == item["decoded"], text
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        assert skipped == item["decoded_skip_special"], text


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_saved_byte_for_byte(
    published: Path, tmp_path: Path, name: str
) -> None:
    save_tokenizer(load_tokenizer(published), tmp_path)
    assert (tmp_path / name).read_text().strip() == (published / name).read_text().strip()


def test_state_of_a_call_is_not_saved(published: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(published)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=3)
    save_tokenizer(tokenizer, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None


def test_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_small_chat_tokens_are_those_of_the_published_one(
    small: PreTrainedTokenizerFast, published: Path
) -> None:
    def describe(tokenizer: PreTrainedTokenizerFast, offset: int) -> dict[int, str]:
        tokens = tokenizer.added_tokens_decoder
        return {key - offset if key > 2 else key: repr(token) for key, token in tokens.items()}

    assert describe(small, 512 - 45) == describe(load_tokenizer(published), 32000)


def test_small_settings_are_those_of_the_published_one(
    small: PreTrainedTokenizerFast, published: Path, tmp_path: Path
) -> None:
    save_tokenizer(small, tmp_path)
    for name in FILES:
        ours = json.loads((tmp_path / name).read_text())
        theirs = json.loads((published / name).read_text())
        for key in ("added_tokens", "model", "added_tokens_decoder", "additional_special_tokens"):
            ours.pop(key, None), theirs.pop(key, None)
        # Where the published files name their code or the first tokenizer library, nothing follows.
        for key in ("auto_map", "processor_class", "legacy", "sp_model_kwargs"):
            theirs.pop(key, None)
        theirs.pop("use_default_system_prompt", None)
        assert ours == theirs, name


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("<|assistant|>\n", ["<|assistant|>"]),
        ("<|assistant|>\n  4", ["<|assistant|>", "▁", "4"]),
        ("<|user|>\n", ["<|user|>", "▁", "<0x0A>"]),
        ("<|end|>\n", ["<|end|>", "▁", "<0x0A>"]),
        ("é", ["▁", "<0xC3>", "<0xA9>"]),
        ("42", ["▁", "4", "2"]),
        ("<|image|>", ["<|image|>"]),
    ],
)
def test_small_tokenizer_follows_the_published_rules(
    small: PreTrainedTokenizerFast, text: str, pieces: list[str]
) -> None:
    assert small.convert_ids_to_tokens(small(text)["input_ids"]) == ["<s>", *pieces]


@pytest.mark.parametrize(
    "text", ["What is in this picture?", "  two  spaces", "naïve café – 東京 🙂", "a\tb\n\nc", "\n"]
)
def test_small_tokenizer_gives_the_text_back(small: PreTrainedTokenizerFast, text: str) -> None:
    ids = small(text)["input_ids"]
    assert small.decode(ids, skip_special_tokens=True) == text


def test_small_tokenizer_is_the_same_every_time(small: PreTrainedTokenizerFast) -> None:
    assert make_small_tokenizer().backend_tokenizer.to_str() == small.backend_tokenizer.to_str()


def test_small_tokenizer_learns_from_the_texts_given() -> None:
    tokenizer = make_small_tokenizer(["zebra zebra zebra"] * 4, vocab_size=420)
    assert tokenizer.convert_ids_to_tokens(tokenizer("zebra")["input_ids"]) == ["<s>", "▁zebra"]
    assert len(tokenizer) <= 420
    assert tokenizer.convert_tokens_to_ids("<|image|>") == len(tokenizer) - 1


def test_small_tokenizer_survives_a_save(small: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(small, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.backend_tokenizer.to_str() == small.backend_tokenizer.to_str()
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert loaded.chat_template == small.chat_template


def test_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 300, expected at least 399"):
        make_small_tokenizer(vocab_size=300)
