"""Conversations for a tiny model, the answers to them, and what the answers cost."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.testing import assert_close

from phi3v.inference.prefilling import generate_rows
from phi3v.inference.prefixes import PrefixCache
from phi3v.inference.prompts import PreparedPrompt, prepare_prompt
from phi3v.model.answers import Conversation
from phi3v.model.processing import Phi3VProcessor

# A picture takes 41 tokens here: two turns with one lie below the switch, three above.
SWITCH = 120


class Counter:
    """Counts the tokens that the decoder is fed, and the crops that the tower is shown."""

    def __init__(self, model: Any) -> None:
        self.fed: list[int] = []
        self.crops = 0
        for module in model.modules():
            if type(module).__name__ == "Phi3VModel":
                module.register_forward_pre_hook(self._feed, with_kwargs=True)
            if type(module).__name__ == "CLIPVisionTower":
                module.register_forward_pre_hook(self._show)

    def _feed(self, module: Any, args: Any, kwargs: Any) -> None:
        self.fed.append(kwargs["input_ids"].numel())

    def _show(self, module: Any, args: Any) -> None:
        self.crops += len(args[0])

    def take(self) -> tuple[list[int], int]:
        taken, self.fed, self.crops = (self.fed, self.crops), [], 0
        return taken


Said = Sequence[tuple[str, Sequence[Image.Image]]]


def prompt_of(processor: Phi3VProcessor, turns: Said) -> PreparedPrompt:
    """Prepare texts of user and assistant in turn, with their pictures."""
    messages, pictures = [], []
    for number, (text, own) in enumerate(turns):
        tags = [f"<|image_{len(pictures) + place + 1}|>\n" for place in range(len(own))]
        role = "assistant" if number % 2 else "user"
        messages.append({"role": role, "content": "".join(tags) + text})
        pictures += own
    return prepare_prompt(processor, Conversation(messages, pictures), 10_000)


def stretch(prompt: PreparedPrompt, *added: int, length: int = 0) -> PreparedPrompt:
    """Add ids to a prompt, or the same one up to a length."""
    ids = [*prompt.input_ids, *added]
    return PreparedPrompt(ids + [9] * (length - len(ids)), prompt.pictures)


def answer(
    model: Any, prompts: Sequence[PreparedPrompt], prefixes: PrefixCache, **options: Any
) -> tuple[list[list[int]], torch.Tensor]:
    """Answer with 10 tokens each, and return their ids and logits (10, B, vocabulary)."""
    free = {"do_sample": False, "eos_token_id": None, "output_logits": True}
    settings = free | {"max_new_tokens": 10} | options
    found = generate_rows(model, prompts, prefixes, pad_id=1, **settings)
    start = max(len(prompt.input_ids) for prompt in prompts)
    return found.sequences[:, start:].tolist(), torch.stack(found.logits)


def check_same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    # float32 sums in another order.
    assert_close(found[1], expected[1], rtol=0, atol=1e-5 * float(expected[1].abs().max()))
