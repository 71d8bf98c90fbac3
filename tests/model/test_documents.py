"""A document is the same alone, padded and packed; its rotary factors are its own."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from phi3v import Phi3VForCausalLM
from phi3v.model.rotary import packed_document_lengths

# FlexAttention compiles its kernel for every shape.
FLEX = pytest.param(
    "flex_attention",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention needs a compiler"),
    ],
)
KERNELS = ["eager", "sdpa", FLEX]
# Float32 noise; a wrong regime or a leak between documents moves the logits by 0.1 and more.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
# Below, at and past the switch of 64.
LENGTHS = [20, 64, 65, 90]

Make = Callable[..., Phi3VForCausalLM]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    # Kernels for changing shapes, which the second case would get, do not compile on a CPU.
    torch.compiler.reset()


@pytest.fixture
def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 400, (1, length), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], *, left: bool) -> dict[str, Tensor]:
    width = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), width), 7)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - row.shape[1], width) if left else slice(row.shape[1])
        ids[index, place], mask[index, place] = row[0], 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if left:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    return inputs


def packed(rows: list[Tensor]) -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    return {"input_ids": torch.cat(rows, dim=1), "position_ids": positions}


@pytest.fixture
def alone(make_model: Make, documents: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [make_model("eager")(row).logits[0] for row in documents]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("attention", KERNELS)
def test_padded_row_equals_the_row_alone(
    make_model: Make, documents: list[Tensor], alone: list[Tensor], attention: str, left: bool
) -> None:
    inputs = padded(documents, left=left)
    with torch.no_grad():
        logits = make_model(attention)(**inputs).logits
    for row, mask, expected in zip(logits, inputs["attention_mask"], alone, strict=True):
        assert_close(row[mask.bool()], expected, **CLOSE)


@pytest.mark.parametrize("attention", KERNELS)
def test_packed_document_equals_the_document_alone(
    make_model: Make, documents: list[Tensor], alone: list[Tensor], attention: str
) -> None:
    # With the default use_cache, which must not lose the bounds of the documents.
    with torch.no_grad():
        logits = make_model(attention)(**packed(documents)).logits
    assert_close(logits[0], torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("attention", KERNELS)
def test_several_packed_rows_equal_their_documents_alone(
    make_model: Make, documents: list[Tensor], alone: list[Tensor], attention: str
) -> None:
    # Rows of 85 tokens: 20 + 65, and 64 + 21 places of padding, each a document of its own.
    first, second = packed(documents[:1] + documents[2:3]), packed(documents[1:2])
    gap = torch.full((1, 21), 7)
    inputs = {
        "input_ids": torch.cat([first["input_ids"], torch.cat([second["input_ids"], gap], 1)]),
        "position_ids": torch.cat(
            [first["position_ids"], torch.cat([second["position_ids"], gap * 0], 1)]
        ),
    }
    with torch.no_grad():
        logits = make_model(attention)(**inputs).logits
    assert_close(logits[0], torch.cat([alone[0], alone[2]]), **CLOSE)
    assert_close(logits[1, :64], alone[1], **CLOSE)


def test_the_regime_matters_in_these_tests(make_model: Make, documents: list[Tensor]) -> None:
    model = make_model()
    with torch.no_grad():
        short = model(documents[1]).logits
        long = model(documents[1], document_lengths=torch.tensor([[65]])).logits
    assert (short - long).abs().max() > 0.1


def test_sixty_five_tokens_are_long_and_sixty_four_short(make_model: Make) -> None:
    model, ids = make_model(), torch.arange(3, 68)[None]
    with torch.no_grad():
        whole = model(ids).logits[:, :64]
        cut = model(ids[:, :64]).logits
        forced = model(ids[:, :64], document_lengths=torch.tensor([[65]])).logits
    assert_close(whole, forced, **CLOSE)
    assert (whole - cut).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_of_a_pack_are_those_of_its_documents(
    make_model: Make, documents: list[Tensor], attention: str
) -> None:
    total = sum(length - 1 for length in LENGTHS)
    one, many = make_model(attention).train(), make_model(attention).train()
    batch = packed(documents)
    labels = batch["input_ids"].masked_fill(batch["position_ids"] == 0, -100)
    loss = one(**batch, labels=labels, num_items_in_batch=total).loss
    loss.backward()
    parts = []
    for row in documents:
        parts.append(many(row, labels=row, num_items_in_batch=total).loss)
        parts[-1].backward()
    assert_close(loss, torch.stack(parts).sum(), rtol=1e-5, atol=0)
    for (name, packed_one), alone_one in zip(
        one.named_parameters(), many.parameters(), strict=True
    ):
        if packed_one.grad is None:
            assert alone_one.grad is None, name
        else:
            assert_close(packed_one.grad, alone_one.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_images_in_packed_rows_equal_the_rows_alone(
    make_model: Make, processor: Any, pictures: list[Any], attention: str
) -> None:
    texts = ["<|image_1|>\nWhat?", "Hello there", "<|image_1|><|image_2|>Which?"]
    images: list[list[Any]] = [pictures[:1], [], pictures[1:]]
    model = make_model(attention)
    rows, pixels, sizes, expected = [], [], [], []
    for text, row_images in zip(texts, images, strict=True):
        row = processor(text, row_images or None, pixel_format="compact", return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**row).logits[0])
        rows.append(row["input_ids"])
        if row_images:
            pixels.append(row["pixel_values"])
            sizes += row["image_sizes"].tolist()
    batch = packed(rows)
    with torch.no_grad():
        logits = model(**batch, pixel_values=torch.cat(pixels), image_sizes=sizes).logits
    assert_close(logits[0], torch.cat(expected), **CLOSE)


def test_lengths_of_packed_documents_are_counted() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    expected = [[3, 3, 3, 2, 2, 1], [6] * 6]
    assert packed_document_lengths(positions).tolist() == expected


def test_cached_step_equals_the_whole_pass(make_model: Make, documents: list[Tensor]) -> None:
    model, row = make_model(), documents[0]
    with torch.no_grad():
        whole = model(row).logits
        first = model(row[:, :12], use_cache=True)
        second = model(row[:, 12:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, second.logits], dim=1), whole, **CLOSE)
