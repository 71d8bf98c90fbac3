"""Opens, writes and makes tokenizers of the Phi-3 family.

All of them share the special tokens and rules of the published one: a Llama-style BPE with byte
fallback, and a BOS in front of every text.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from phi3v.model.text import CHAT_TEMPLATE, IMAGE_TOKEN
from phi3v.model.tokenizer_rules import check_rules

_SPACE = "\u2581"
_UNK, _BOS, _END_OF_SEQUENCE, _END_OF_TEXT = "<unk>", "<s>", "</s>", "<|endoftext|>"
_NAMED_TOKENS = {
    "bos_token": _BOS,
    "eos_token": _END_OF_TEXT,
    "pad_token": _END_OF_TEXT,
    "unk_token": _UNK,
}
# In the published order; the ids follow the vocabulary without a gap.
_CHAT_TOKENS = (
    _END_OF_TEXT,
    "<|assistant|>",
    *(f"<|placeholder{number}|>" for number in range(1, 5)),
    "<|system|>",
    "<|end|>",
    *(f"<|placeholder{number}|>" for number in range(5, 7)),
    "<|user|>",
    *(f"<|placeholder{number}|>" for number in range(7, 40)),
    IMAGE_TOKEN,
)
# All other chat tokens swallow the whitespace to their right.
_KEEPS_WHITESPACE = (_END_OF_TEXT, "<|system|>", "<|end|>", "<|user|>")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PRINTABLE = [chr(code) for code in range(33, 127)]
# Settings that the library notes for itself while loading; they describe no tokenizer.
_RUNTIME_SETTINGS = {
    "backend",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "name_or_path",
    "tokenizer_file",
    "tokenizer_object",
    "vocab_file",
}
_ENGLISH = """\
What is in this picture? Describe the image in one sentence. Which number is written here?
The picture shows a handwritten digit on a white page. It is a seven. How many are there?
Is the first image the same as the second? No, they are different: one is darker than the other.
Answer with a single word, please. The answer is yes. Where is it? In the middle of the page.
What colour is the box? The box is red and the circle is blue. There are three people on the left.
Read the text of the sign. Who is this for? When was it made? Why do you think so? I can see that.
"""


def load_tokenizer(path: str | Path, **kwargs: Any) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint, exactly as its tokenizer.json describes it.

    Args:
        path: Checkpoint folder or hub id.
        **kwargs: Download options of the library (revision, token, cache_dir, ...).

    Raises:
        FileNotFoundError: If the folder holds no tokenizer.json.
        ValueError: If the file describes no tokenizer.
    """
    if Path(path).is_dir() and not (Path(path) / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{path} has no tokenizer.json; copy the tokenizer files of the base model into it"
        )
    # Not AutoTokenizer: the published files name LlamaTokenizer, which transformers 5 rebuilds from
    # the vocabulary with another normaliser, unless a model type in config.json tells it better.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **kwargs)
        # Rules that name tokens which are not there panic only when they are used.
        tokenizer.decode(tokenizer("What is it?", padding=False, truncation=False)["input_ids"])
    except (OSError, KeyboardInterrupt, SystemExit):
        raise
    # The tokenizers library raises the bare class for whatever it cannot read, and its panics are
    # no exceptions at all.
    except BaseException as error:
        raise ValueError(f"tokenizer.json of {path} describes no tokenizer: {error}") from error
    check_rules(path, tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a tokenizer in the published form: three files, the chat template among the settings.

    The library's own save gives the class, the extra tokens and the merges forms that older
    programs cannot read, and moves the chat template to a file that they do not look for.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    extra = [str(token) for token in tokenizer.extra_special_tokens]
    named = {name: getattr(tokenizer, name) for name in _NAMED_TOKENS}
    settings = {k: v for k, v in tokenizer.init_kwargs.items() if k not in _RUNTIME_SETTINGS}
    settings |= named
    settings |= {
        "add_bos_token": tokenizer("")["input_ids"] == [tokenizer.bos_token_id],
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): _describe(token) | {"special": token.special}
            for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        },
        "additional_special_tokens": extra,
        "chat_template": tokenizer.chat_template,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": "LlamaTokenizer",
    }
    tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    special: dict[str, Any] = {"additional_special_tokens": extra}
    special |= {name: _describe(tokens[token]) for name, token in named.items()}
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer.json", _published_backend(tokenizer), sort_keys=False)


def make_small_tokenizer(
    texts: Iterable[str] | None = None, vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """Make a small tokenizer with the special tokens and rules of the published one.

    Args:
        texts: Texts to learn word pieces from; None takes a few lines of English. The same texts
            give the same tokenizer.
        vocab_size: Number of ids, special tokens included; fewer are used if the texts are short.

    Returns:
        The tokenizer; its chat tokens are the last ids, `<|image|>` the very last one.

    Raises:
        ValueError: If vocab_size has no room for the bytes, ASCII and the special tokens.
    """
    first = [_UNK, _BOS, _END_OF_SEQUENCE, *_BYTES]
    alphabet = [_SPACE, *_PRINTABLE]
    smallest = len(first) + len(alphabet) + len(_CHAT_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected at least {smallest}: bytes, ASCII and special "
            "tokens take that many"
        )
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(_CHAT_TOKENS),
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = Tokenizer(BPE())
    # Pieces of words only, each with the space before it, and every digit alone.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    lines = _ENGLISH.splitlines() if texts is None else texts
    learner.train_from_iterator(lines, trainer)
    learned = json.loads(learner.to_str())["model"]
    backend = _assemble(learned["vocab"], [tuple(merge) for merge in learned["merges"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=["<|system|>", "<|end|>", "<|user|>"],
        model_max_length=131072,
        padding_side="right",
        **_NAMED_TOKENS,
    )


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Put the published rules around a learned vocabulary."""
    model = BPE(vocab=vocab, merges=merges, unk_token=_UNK, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS}:1 $B:1", special_tokens=[(_BOS, vocab[_BOS])]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in (_UNK, _BOS)])
    backend.add_tokens([AddedToken(_END_OF_SEQUENCE, rstrip=True, normalized=False)])
    backend.add_special_tokens(
        [
            AddedToken(token, rstrip=token not in _KEEPS_WHITESPACE, normalized=False)
            for token in _CHAT_TOKENS
        ]
    )
    return backend


def _published_backend(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Give the content of tokenizer.json, with merges as "a b", which every release can read."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}
    merges = backend["model"]["merges"]
    if not any(" " in piece for merge in merges for piece in merge):
        backend["model"]["merges"] = [" ".join(merge) for merge in merges]
    return backend


def _describe(token: AddedToken) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word")
    return {name: getattr(token, name) for name in names}


def _write_json(file: Path, content: dict[str, Any], sort_keys: bool = True) -> None:
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
