"""Answers that start behind what is kept are the answers without it, and cost less."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tests.inference.turns import SWITCH, Counter, Said, answer, check_same, prompt_of, stretch
from tests.model.graphs import compiling, graphs, note_graph

from phi3v.inference.prefixes import PrefixCache
from phi3v.inference.prompts import PreparedPrompt
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.tiny import tiny_config, tiny_model
from phi3v.model.tokenizer import make_small_tokenizer

ONE, OTHER = (Image.effect_noise(size, 60).convert("RGB") for size in ((60, 60), (64, 64)))
WIDE = Image.effect_noise((300, 100), 60).convert("RGB")


@pytest.fixture(scope="module")
def processor() -> Phi3VProcessor:
    images = Phi3VImageProcessor(num_crops=1, crop_size=112, patch_size=14)
    return Phi3VProcessor(images, make_small_tokenizer())


@pytest.fixture
def model(processor: Phi3VProcessor) -> Any:
    tokenizer: Any = processor.tokenizer
    config = tiny_config(tokenizer, hidden_size=32, original_max_position_embeddings=SWITCH)
    made = tiny_model(config)
    made.set_stop_tokens()
    # Larger weights than those of a model to train: tokens must matter to each other.
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2.0 if weight.dim() > 1 else 1.0)
    return made


@pytest.fixture
def adapted_model(model: Any) -> Any:
    names = ["qkv_proj", "o_proj", "gate_up_proj", "q_proj", "fc1"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def check_turns(
    model: Any, processor: Phi3VProcessor, talk: Sequence[Said], prefixes: PrefixCache
) -> Iterator[PreparedPrompt]:
    """Compare the answers to conversations that follow each other with those of a fresh start."""
    for turns in talk:
        prompt = prompt_of(processor, turns)
        check_same(
            answer(model, [prompt], prefixes), answer(model, [prompt], PrefixCache(max_tokens=0))
        )
        yield prompt


HELLO, REPLY = ("What do you see here", []), ("I see a small grey square", [])
SHOWN, MORE = ("What do you see here", [ONE]), ("And what is in this one", [OTHER])
LONG = ("Which", [WIDE, ONE, OTHER])
TALKS = {
    "text": [[HELLO], [HELLO, REPLY, ("Tell me more of it", [])]],
    "picture": [[SHOWN], [SHOWN, REPLY, HELLO], [SHOWN, REPLY, HELLO, REPLY, HELLO]],
    "picture later": [[HELLO], [HELLO, REPLY, MORE], [HELLO, REPLY, MORE, REPLY, HELLO]],
    "same question again": [[SHOWN], [SHOWN]],
    "edited question": [[SHOWN, REPLY, HELLO], [SHOWN, REPLY, ("What did you see", [])]],
    "edited beginning": [[SHOWN, REPLY, HELLO], [("Why do you", [ONE]), REPLY, HELLO]],
    "other picture": [[SHOWN, REPLY, HELLO], [("What do you see here", [OTHER]), REPLY, HELLO]],
    "other order": [[("Which", [ONE, OTHER])], [("Which", [OTHER, ONE])]],
    "same picture twice": [[("Which", [ONE])], [("Which", [ONE, ONE])]],
    "across the switch": [[SHOWN], [SHOWN, REPLY, MORE, REPLY, ("Which", [WIDE])]],
    "and back": [[SHOWN, REPLY, MORE, REPLY, ("Which", [WIDE])], [SHOWN, REPLY, HELLO]],
    "past the switch": [[LONG], [LONG, REPLY, HELLO]],
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_answers_and_logits_are_those_of_a_fresh_start(
    model: Any, processor: Phi3VProcessor, talk: Sequence[Said]
) -> None:
    list(check_turns(model, processor, talk, PrefixCache()))


@pytest.mark.parametrize("length", range(SWITCH - 12, SWITCH + 3, 2))
def test_every_length_around_the_switch(model: Any, processor: Phi3VProcessor, length: int) -> None:
    # The first answer passes the switch, ends just before it, or begins behind it.
    counter, prefixes = Counter(model), PrefixCache()
    prompt = stretch(prompt_of(processor, [SHOWN]), length=length)
    answer(model, [prompt], prefixes)
    counter.take()
    longer = stretch(prompt, 11, 12, 13)
    found = answer(model, [longer], prefixes)
    assert counter.take()[1] == 0
    check_same(found, answer(model, [longer], PrefixCache(max_tokens=0)))


@pytest.mark.parametrize("name", ["picture", "across the switch", "and back"])
def test_static_caches_and_compiled_steps_change_nothing(
    model: Any, processor: Phi3VProcessor, name: str
) -> None:
    torch._dynamo.reset()
    graphs.clear()
    model.generation_config.compile_config = compiling(note_graph)
    prefixes, static = PrefixCache(), {"cache_implementation": "static"}
    with torch.inference_mode():
        for turns in TALKS[name]:
            prompts = [prompt_of(processor, one) for one in (turns, [HELLO])]
            found = answer(model, prompts, prefixes, **static)
            check_same(found, answer(model, prompts, PrefixCache(max_tokens=0)))
    # One for the first length of the cache, one for any other.
    assert 1 <= len(graphs) <= 2
    torch._dynamo.reset()


def test_a_turn_decodes_only_what_is_new(model: Any, processor: Phi3VProcessor) -> None:
    counter, prefixes = Counter(model), PrefixCache()
    first = prompt_of(processor, [SHOWN])
    ids, _ = answer(model, [first], prefixes)
    # One global crop and one of its own.
    assert counter.take() == ([len(first.input_ids) - 1] + [1] * 10, 2)
    second = stretch(first, *ids[0], 5, 6, 7)
    answer(model, [second], prefixes)
    # The last token of an answer is not decoded with it, that of a prompt with its answer.
    assert counter.take() == ([3] + [1] * 10, 0)
    # Two questions at once: the same again, and another with a picture more.
    both = [second, prompt_of(processor, [("What do you see here", [ONE, OTHER])])]
    begun = both[1].pictures[1].start
    answer(model, both, prefixes)
    assert counter.take() == ([len(both[1].input_ids) - 1 - begun] + [2] * 10, 2)


def test_passing_the_switch_decodes_again_without_the_tower(
    model: Any, processor: Phi3VProcessor
) -> None:
    counter, prefixes = Counter(model), PrefixCache()
    first = prompt_of(processor, [SHOWN])
    answer(model, [first], prefixes)
    counter.take()
    answer(model, [stretch(first, length=SWITCH + 5)], prefixes)
    assert counter.take() == ([SWITCH + 4] + [1] * 10, 0)


def test_other_crops_of_a_picture_are_another_picture(model: Any) -> None:
    prefixes, tokenizer, said = PrefixCache(), make_small_tokenizer(), [("Which", [WIDE])]
    for num_crops in (4, 1, 4):
        images = Phi3VImageProcessor(num_crops=num_crops, crop_size=112, patch_size=14)
        list(check_turns(model, Phi3VProcessor(images, tokenizer), [said], prefixes))


def test_base_and_adapter_share_nothing(adapted_model: Any, processor: Phi3VProcessor) -> None:
    counter, prefixes = Counter(adapted_model), PrefixCache()
    first, second = (prompt_of(processor, said) for said in ([SHOWN], [SHOWN, REPLY, HELLO]))
    logits = []
    for prompt, crops in ((first, 2), (second, 0)):
        for adapted in (True, False):
            with nullcontext() if adapted else adapted_model.disable_adapter():
                counter.take()
                found = answer(adapted_model, [prompt], prefixes, adapted=adapted)
                assert counter.take()[1] == crops
                fresh = answer(adapted_model, [prompt], PrefixCache(max_tokens=0))
            check_same(found, fresh)
            logits.append(found[1])
    assert not torch.allclose(logits[-2], logits[-1], atol=1e-2)


def test_rows_of_a_batch_start_where_their_own_prefix_ends(
    model: Any, processor: Phi3VProcessor
) -> None:
    prefixes = PrefixCache()
    for turns in ([SHOWN], [HELLO], [LONG]):
        answer(model, [prompt_of(processor, turns)], prefixes)
    batch = [
        prompt_of(processor, [SHOWN, REPLY, HELLO]),
        prompt_of(processor, [LONG, REPLY, HELLO]),
        # New; the picture of another question; one that passes the switch on the way.
        prompt_of(processor, [MORE]),
        prompt_of(processor, [("Oh", [ONE])]),
        stretch(prompt_of(processor, [SHOWN]), length=SWITCH - 4),
    ]
    ids, logits = answer(model, batch, prefixes)
    for row, prompt in enumerate(batch):
        alone = answer(model, [prompt], PrefixCache(max_tokens=0))
        check_same(([ids[row]], logits[:, row : row + 1]), alone)


def test_what_a_batch_keeps_serves_the_next_turn_of_each_row(
    model: Any, processor: Phi3VProcessor
) -> None:
    prefixes, counter = PrefixCache(), Counter(model)
    prompts = [prompt_of(processor, turns) for turns in ([SHOWN], [HELLO], [MORE])]
    lengths = [10, 3, 7]
    ids, _ = answer(model, prompts, prefixes, answer_lengths=lambda: lengths)
    for prompt, own, length in zip(prompts, ids, lengths, strict=True):
        longer = stretch(prompt, *own[:length], 5, 6, 7)
        counter.take()
        found = answer(model, [longer], prefixes)
        # The batch ended with its first row, whose last token was not decoded any more.
        assert counter.take() == ([3 if length == 10 else 2] + [1] * 10, 0)
        check_same(found, answer(model, [longer], PrefixCache(max_tokens=0)))


def test_a_row_that_waits_past_the_switch_is_of_no_use_to_short_prompts(
    model: Any, processor: Phi3VProcessor
) -> None:
    # Its own answer ended at once, but it stayed in the batch and passed the switch there.
    prefixes = PrefixCache()
    prompt = stretch(prompt_of(processor, [SHOWN]), length=SWITCH - 6)
    ids, _ = answer(model, [prompt], prefixes, answer_lengths=lambda: [1])
    longer = stretch(prompt, ids[0][0], 5)
    check_same(
        answer(model, [longer], prefixes), answer(model, [longer], PrefixCache(max_tokens=0))
    )
