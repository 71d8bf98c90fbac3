"""The same steps on a GPU: kernels agree, nothing waits, caches and optimizers do the same.

Each body runs on the CPU, too, where it has less to show.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.model.test_waits import batches
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM

Make = Callable[..., Phi3VForCausalLM]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = ["without padding", "shared"]


def moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), {name: one.float().cpu() for name, one in found.items()}


def check_close(found: Any, expected: Any, tolerance: float) -> None:
    """Compare losses, and gradients by how far apart they are over how long they are together."""
    assert_close(found[0].float().cpu(), expected[0].float().cpu(), rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    far, long = (
        torch.stack([one.norm() for one in ones]).norm()
        for ones in (
            [found[1][name] - one for name, one in expected[1].items()],
            list(expected[1].values()),
        )
    )
    # Rounding of every weight and state to 16 bits adds up over the layers.
    assert far <= 5 * tolerance * long


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Let CUDA raise where the host waits for the device."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_device_has_the_gradients_of_the_cpu_in_float32(
    make_model: Make,
    processor: Any,
    pictures: Any,
    device: str,
    kind: str,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The convolution of the patches would round its products to 10 bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    batch = batches(processor, pictures)[kind]
    expected = gradients(make_model().train(), batch)
    model = make_model().to(device, dtype).train()
    check_close(gradients(model, moved(batch, device)), expected, tolerance)


@pytest.mark.parametrize(
    ("device", "kernel", "dtype", "tolerance"),
    [
        ("cpu", "eager", torch.float32, 1e-4),
        pytest.param(
            "cuda", "flash_attention_2", torch.bfloat16, 3e-2, marks=pytest.mark.gpu, id="bfloat16"
        ),
        pytest.param(
            "cuda", "flash_attention_2", torch.float16, 1e-2, marks=pytest.mark.gpu, id="float16"
        ),
    ],
)
@pytest.mark.parametrize("padding_free", [True, False])
def test_another_kernel_has_the_gradients_of_sdpa(
    make_model: Make,
    processor: Any,
    pictures: Any,
    device: str,
    kernel: str,
    dtype: torch.dtype,
    tolerance: float,
    padding_free: bool,
) -> None:
    if kernel == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    from tests.model.test_waits import examples

    from phi3v.data.collator import Collator

    collate = Collator(0, processor.image_token_id, padding_free=padding_free)
    batch = moved(collate(examples(processor, pictures)), device)
    plain, other = (
        gradients(make_model(attention).to(device, dtype).train(), batch)
        for attention in ("sdpa", kernel)
    )
    check_close(other, plain, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [*KINDS, "text only"])
def test_the_host_waits_for_nothing_in_a_packed_step(
    make_model: Make, processor: Any, pictures: Any, device: str, kind: str
) -> None:
    model = make_model().to(device).train()
    model.model.link_vision_without_images = True
    batch = moved(batches(processor, pictures)[kind], device)
    count = torch.ones((), device=device)
    # The first step of a process loads kernels.
    model(**batch, num_items_in_batch=count).loss.backward()
    with no_waiting(device):
        model(**batch, num_items_in_batch=count).loss.backward()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


@pytest.mark.gpu
def test_the_guard_against_waiting_raises() -> None:
    with no_waiting("cuda"), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("device", DEVICES)
def test_the_fused_optimizer_moves_weights_as_the_plain_one(
    make_model: Make, processor: Any, pictures: Any, device: str
) -> None:
    models = [make_model().to(device).train() for _ in range(2)]
    models[0](**moved(batches(processor, pictures)["without padding"], device)).loss.backward()
    # The same gradients: the first step of Adam has the size of the rate, whatever their own.
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    for fused, model in enumerate(models):
        torch.optim.AdamW(model.parameters(), lr=1e-3, fused=bool(fused)).step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-6)
    before = make_model().to(device).state_dict()
    assert not all(torch.equal(before[name], one) for name, one in models[1].named_parameters())


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_a_static_cache_writes_what_a_growing_one_does(
    make_model: Make, processor: Any, pictures: Any, device: str
) -> None:
    model = make_model().to(device).eval()
    prompt = processor("<|image_1|>\nWhat is this?", pictures[:1], return_tensors="pt")
    inputs = moved(dict(prompt), device)
    written = [
        model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, cache_implementation=kind
        ).tolist()
        for kind in (None, "static")
    ]
    assert written[0] == written[1]
