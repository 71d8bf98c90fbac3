"""Decoding with a cache of fixed length, compiled once."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.model.graphs import compiling, graphs, note_graph
from transformers import StaticCache

from phi3v import Phi3VForCausalLM
from phi3v.model.generation import CACHE_ARGUMENT

Make = Callable[..., Phi3VForCausalLM]
FREE: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
STATIC = FREE | {"cache_implementation": "static"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    graphs.clear()
    yield
    torch._dynamo.reset()
    graphs.clear()


def prompts(*lengths: int) -> dict[str, torch.Tensor]:
    """Rows of ids, padded at their left."""
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), 1)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.arange(3, 3 + length)
        mask[row, longest - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("lengths", [(17,), (17, 9)], ids=["alone", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_graph_serves_all_tokens(
    make_model: Make, lengths: tuple[int, ...], attention: str
) -> None:
    model, inputs = make_model(attention), prompts(*lengths)
    expected = model.generate(**inputs, **FREE, max_new_tokens=12)
    found = model.generate(
        **inputs, **STATIC, max_new_tokens=12, compile_config=compiling(note_graph)
    )
    assert found.tolist() == expected.tolist()
    assert len(graphs) == 1


def test_a_compiled_step_holds_no_constant_of_the_host(make_model: Make) -> None:
    # On a GPU such a step could not be recorded.
    make_model().generate(
        **prompts(17), **STATIC, max_new_tokens=4, compile_config=compiling(note_graph)
    )
    (graph,) = graphs
    assert all(node.op != "get_attr" for node in graph.graph.nodes)
    assert torch.tensor not in [node.target for node in graph.graph.nodes]


def test_the_switch_is_passed_outside_the_compiled_step(make_model: Make) -> None:
    model, inputs = make_model(), prompts(59, 20)
    expected = model.generate(**inputs, **FREE, max_new_tokens=12)
    found = model.generate(
        **inputs, **STATIC, max_new_tokens=12, compile_config=compiling(note_graph)
    )
    assert found.tolist() == expected.tolist()
    assert len(graphs) == 1


def test_further_lengths_and_batches_are_not_compiled_for_ever(make_model: Make) -> None:
    model, config = make_model(), compiling(note_graph)
    counts = []
    for lengths in [(9,), (12,), (15,), (9, 5), (9, 5, 7), (9, 8, 7, 6), (11,), (8, 3)]:
        model.generate(**prompts(*lengths), **STATIC, max_new_tokens=4, compile_config=config)
        counts.append(len(graphs))
    # One row and several, each first for its own length and then for any.
    assert counts[-1] <= 4 and counts[4:] == counts[4:5] * 4


@pytest.mark.slow
def test_the_default_compiler_writes_the_same_answers(make_model: Make) -> None:
    model, inputs = make_model(), prompts(17, 9)
    expected = model.generate(**inputs, **FREE, max_new_tokens=12)
    config = compiling("inductor")
    torch._dynamo.utils.counters.clear()
    for num_tokens in (4, 12):
        cache = StaticCache(config=model.config, max_cache_len=64)
        options = FREE | {"max_new_tokens": num_tokens, CACHE_ARGUMENT: cache}
        found = model.generate(**inputs, **options, compile_config=config)
        assert found.tolist() == expected[:, : 17 + num_tokens].tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
def test_a_gpu_compiles_decoding_steps_by_itself(make_model: Make) -> None:
    model, inputs = make_model().cuda(), {k: v.cuda() for k, v in prompts(17, 9).items()}
    expected = model.generate(**inputs, **FREE, max_new_tokens=12)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        found = model.generate(**inputs, **STATIC, max_new_tokens=12)
        assert found.tolist() == expected.tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
