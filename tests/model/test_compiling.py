"""Fused steps and compiled layers: equal results, and no compiling again from batch to batch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM
from phi3v.model import compiling
from phi3v.model.compiling import compile_layers, fuse_elementwise
from phi3v.model.recompute import set_regime

Make = Callable[..., Phi3VForCausalLM]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    compiling._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    compiling._compiled.cache_clear()


def packs(processor: Any, pictures: Any) -> list[dict[str, Any]]:
    """Rows of other lengths, numbers of documents, crops and labels."""
    made = []
    for own, words, tails in [
        (pictures[:1], 3, (5,)),
        (pictures[1:], 9, (7, 4)),
        (pictures, 5, (3, 8, 6)),
        (pictures[:2], 14, (11,)),
        (pictures[2:], 7, (9, 2, 3, 4)),
    ]:
        tags = "".join(f"<|image_{number + 1}|>\n" for number in range(len(own)))
        batch = dict(
            processor(tags + "word " * words, own, return_tensors="pt", pixel_format="compact")
        )
        ids = torch.cat([batch["input_ids"][0], torch.randint(3, 90, (sum(tails),))])
        labels = ids.clone()
        labels[: batch["input_ids"].shape[1]] = -100
        made.append(
            {
                "input_ids": ids[None],
                "labels": labels[None],
                "segments": [(len(ids) - sum(tails), 0, 0), *((tail, 0, 0) for tail in tails)],
                "pixel_values": batch["pixel_values"],
                "image_sizes": batch["image_sizes"].tolist(),
            }
        )
    return made


def train(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), [one.grad for one in model.parameters() if one.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "regime"),
    [
        (fuse_elementwise, "none"),
        (fuse_elementwise, "selective"),
        (compile_layers, "none"),
        (compile_layers, "full"),
    ],
)
def test_compiled_code_gives_the_same_gradients(
    make_model: Make, processor: Any, pictures: Any, change: Any, regime: Any
) -> None:
    plain, changed = make_model().train(), make_model().train()
    change(changed, backend="aot_eager")
    set_regime(changed, regime)
    for batch in packs(processor, pictures)[:2]:
        expected, found = train(plain, batch), train(changed, batch)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", [fuse_elementwise, compile_layers])
def test_nothing_is_compiled_again_from_the_third_batch_on(
    make_model: Make, processor: Any, pictures: Any, change: Any
) -> None:
    model = make_model(num_hidden_layers=6, num_vision_layers=5).train()
    counter = CompileCounter()
    change(model, backend=counter)
    counts = []
    for batch in packs(processor, pictures):
        train(model, batch)
        counts.append(counter.frame_count)
    assert 0 < counts[0] <= counts[1]
    # All lengths, crops and packs, and all layers, share few codes.
    assert counts[2:] == [counts[1]] * 3
    assert counts[1] <= 20


@pytest.mark.slow
@pytest.mark.parametrize("change", [fuse_elementwise, compile_layers])
def test_batches_of_every_shape_stay_within_the_compilers_limit(
    make_model: Make, change: Any
) -> None:
    """Past it the compiler gives up on what it meets next, and says so once in a log."""
    model = make_model(num_hidden_layers=3).train()
    change(model, backend="aot_eager")
    ids = torch.randint(3, 90, (3, 40))

    def labels(rows: int, count: int) -> torch.Tensor:
        supervised = torch.arange(40) >= 40 - count
        return ids[:rows].where(supervised, -100)

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows, count in ((2, 5), (3, 9), (2, 0), (1, 1), (1, 3), (1, 0), (3, 1), (2, 30)):
            model.train()
            model(input_ids=ids[:rows], labels=labels(rows, count)).loss.backward()
            with torch.no_grad():
                model.eval()
                model(input_ids=ids[:rows], labels=labels(rows, count))
                model.generate(input_ids=ids[:rows, :20], max_new_tokens=4, use_cache=True)


@pytest.mark.slow
def test_the_default_compiler_is_equal_within_rounding(
    make_model: Make, processor: Any, pictures: Any
) -> None:
    batch = packs(processor, pictures)[1]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        plain, fused = make_model().to(dtype).train(), make_model().to(dtype).train()
        fuse_elementwise(fused)
        expected, found = train(plain, batch), train(fused, batch)
        assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
        for one, other in zip(found[1], expected[1], strict=True):
            scale = other.abs().max().clamp(min=1e-3)
            assert (one - other).abs().max() <= 2 * tolerance * scale


@pytest.mark.gpu
@pytest.mark.parametrize("change", [fuse_elementwise, compile_layers])
def test_compiled_code_on_a_gpu_is_equal_within_rounding(
    make_model: Make, processor: Any, pictures: Any, change: Any
) -> None:
    batch = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in packs(processor, pictures)[2].items()
    }
    plain, fused = (make_model().bfloat16().cuda().train() for _ in range(2))
    change(fused)
    expected, found = train(plain, batch), train(fused, batch)
    assert_close(found[0], expected[0], rtol=2e-2, atol=2e-2)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).abs().max() <= 0.1 * other.abs().max().clamp(min=1e-3)
