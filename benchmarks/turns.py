"""What each turn of a conversation decodes and encodes, with kept prefixes and without.

A random model of two narrow layers talks about pictures cut as the published models cut them, so
image tokens and crops are theirs; CPU seconds tell of this small model only. Prints a table.

    python -m benchmarks.turns
"""

import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from phi3v.inference.chat import ChatSession
from phi3v.inference.prefixes import PrefixCache
from phi3v.model.answers import Conversation, render_prompt
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.tiny import tiny_config, tiny_model
from phi3v.model.tokenizer import make_small_tokenizer

# A question and the widths and heights of its pictures.
Talk = Sequence[tuple[str, Sequence[tuple[int, int]]]]
TALK: Talk = [
    ("What is in this picture?", [(1344, 1008)]),
    ("Which part of it is the largest?", []),
    ("And what is in this one?", [(672, 336)]),
    ("Thank you. Describe the first one again.", []),
    ("Is this the same?", [(1344, 1008)]),
    ("Which one do you like most?", []),
]


class Speaker:
    """A session whose model counts what it decodes and encodes.

    Args:
        max_kept_tokens: Bound of its prefixes.
        crop_size: Side of a crop in pixels.
        num_crops: Most crops of a picture.
    """

    def __init__(self, max_kept_tokens: int, *, crop_size: int, num_crops: int) -> None:
        tokenizer = make_small_tokenizer()
        model = tiny_model(tiny_config(tokenizer, crop_size=crop_size, hidden_size=64))
        model.set_stop_tokens()
        images = Phi3VImageProcessor(num_crops=num_crops, crop_size=crop_size, patch_size=14)
        self.session = ChatSession(model, Phi3VProcessor(images, tokenizer))
        self.session.prefixes = PrefixCache(max_kept_tokens)
        self.decoded = self.crops = 0
        model.model.register_forward_pre_hook(self._decode, with_kwargs=True)
        tower = model.model.vision_embed_tokens.img_processor
        tower.register_forward_pre_hook(self._encode)

    def _decode(self, module: Any, args: Any, kwargs: Any) -> None:
        self.decoded += kwargs["input_ids"].numel()

    def _encode(self, module: Any, args: Any) -> None:
        self.crops += len(args[0])

    def ask(self, text: str, pictures: Sequence[Image.Image], num_tokens: int) -> dict[str, Any]:
        """Ask a question; counts of its turn, CPU seconds and the answer."""
        self.decoded = self.crops = 0
        start = time.process_time()
        answer = "".join(self.session.ask(text, pictures, max_new_tokens=num_tokens))
        seconds = time.process_time() - start
        return {
            "decoded": self.decoded,
            "crops": self.crops,
            "seconds": round(seconds, 2),
            "answer": answer,
        }


def measure(
    talk: Talk = TALK, *, crop_size: int = 336, num_crops: int = 16, num_tokens: int = 32
) -> list[dict[str, Any]]:
    """Hold a conversation twice, turn by turn, and count.

    Args:
        talk: The questions.
        crop_size: Side of a crop in pixels.
        num_crops: Most crops of a picture.
        num_tokens: Most tokens of an answer.

    Returns:
        For each turn tokens of its prompt, and "kept" and "anew": tokens decoded, those of the
        answer included, crops encoded, CPU seconds, the answer.
    """
    sizes = {"crop_size": crop_size, "num_crops": num_crops}
    speakers = {"kept": Speaker(16384, **sizes), "anew": Speaker(0, **sizes)}
    turns = []
    for text, shown in talk:
        pictures = [Image.effect_noise(size, 60).convert("RGB") for size in shown]
        turn: dict[str, Any] = {
            name: one.ask(text, pictures, num_tokens) for name, one in speakers.items()
        }
        session = speakers["anew"].session
        now = session.conversation("")
        # Without the answer and the empty question.
        asked = Conversation(now.messages[:-2], now.pictures)
        turn["prompt"] = render_prompt(session.processor, asked).num_tokens
        turns.append(turn)
    return turns


def main() -> None:
    """Print the table."""
    print("| turn | prompt | decoded, kept | anew | crops, kept | anew | CPU s, kept | anew |")
    print("|---|---|---|---|---|---|---|---|")
    for number, turn in enumerate(measure(), start=1):
        kept, anew = turn["kept"], turn["anew"]
        assert kept["answer"] == anew["answer"], f"turn {number} was answered differently"
        cells = [number, turn["prompt"]]
        for name in ("decoded", "crops", "seconds"):
            cells += [kept[name], anew[name]]
        print("| " + " | ".join(f"{cell:,}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
