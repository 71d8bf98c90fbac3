import pytest
import torch
from tests.model.counting import made_bytes
from torch.testing import assert_close

from phi3v import load_model
from phi3v.model.segments import Segment, segment_positions

# Double precision: what is left is the order of sums.
EXACT = {"atol": 1e-10, "rtol": 1e-8}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder, dtype=torch.float64, attn_implementation="sdpa")


def random_ids(count):
    return torch.randint(3, 400, (count,))


def with_labels(ids, prompt):
    labels = ids.clone()
    labels[:prompt] = -100
    return labels


def gradients(model, batches):
    """Gradients of the summed loss over separate calls."""
    model.zero_grad()
    model.train()
    losses = [model(**batch, num_items_in_batch=1).loss for batch in batches]
    total = torch.stack(losses).sum()
    total.backward()
    model.eval()
    return total.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_training(model, packed, alone):
    packed_loss, packed_gradients = gradients(model, [packed])
    loss, expected = gradients(model, alone)
    assert_close(packed_loss, loss, **EXACT)
    assert packed_gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(packed_gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}", **EXACT)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_in_one_row_train_as_alone(model, attention):
    model.set_attn_implementation(attention)
    documents = [random_ids(count) for count in (7, 30, 1, 12)]
    labels = [with_labels(ids, len(ids) // 2) for ids in documents]
    alone = [
        {"input_ids": ids[None], "labels": own[None]}
        for ids, own in zip(documents, labels, strict=True)
        if len(ids) > 1
    ]
    packed = {
        "input_ids": torch.cat(documents)[None],
        "labels": torch.cat([with_labels(own, 1) for own in labels])[None],
        "segments": [(len(ids), 0, 0) for ids in documents],
    }
    packed["labels"][0, 37] = -100  # the document of one token predicts nothing
    assert_same_training(model, packed, alone)
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_questions_on_a_shared_prefix_train_as_alone(model, attention):
    model.set_attn_implementation(attention)
    prefix = random_ids(20)
    branches = [random_ids(count) for count in (5, 9, 3)]
    other = random_ids(6)
    labels = [with_labels(branch, 2) for branch in branches]
    alone = [
        {
            "input_ids": torch.cat([prefix, branch])[None],
            "labels": torch.cat([torch.full((20,), -100), own])[None],
        }
        for branch, own in zip(branches, labels, strict=True)
    ]
    alone.append({"input_ids": other[None], "labels": with_labels(other, 1)[None]})
    packed = {
        "input_ids": torch.cat([other, prefix, *branches])[None],
        "labels": torch.cat([with_labels(other, 1), torch.full((20,), -100), *labels])[None],
        "segments": [(6, 0, 0), (20, 0, 0), (5, 6, 20), (9, 6, 20), (3, 6, 20)],
    }
    assert_same_training(model, packed, alone)
    model.set_attn_implementation("sdpa")


def test_a_shared_picture_is_encoded_once_and_trains_as_alone(model, tiny_folder):
    from phi3v import load_processor

    processor = load_processor(tiny_folder, num_crops=4)
    picture = torch.randint(0, 255, (150, 200, 3), dtype=torch.uint8).numpy()
    prompts = [f"<|user|>\n<|image_1|>\n{word}<|end|>\n" for word in ("one", "what now", "b")]
    batches = [
        dict(processor(text, [picture], return_tensors="pt", pixel_format="compact"))
        for text in prompts
    ]
    place = processor.tokenizer.added_tokens_encoder["<|image|>"]
    shared = int((batches[0]["input_ids"][0] == place).nonzero()[-1]) + 1
    for batch in batches:
        batch.pop("attention_mask")
        batch["labels"] = with_labels(batch["input_ids"][0], shared + 2)[None]
    rest = [batch["input_ids"][:, shared:] for batch in batches]
    packed = {
        "input_ids": torch.cat([batches[0]["input_ids"][:, :shared], *rest], dim=1),
        "labels": torch.cat(
            [torch.full((1, shared), -100), *(batch["labels"][:, shared:] for batch in batches)], 1
        ),
        "pixel_values": batches[0]["pixel_values"],
        "image_sizes": batches[0]["image_sizes"].tolist(),
        "segments": [(shared, 0, 0), *((part.shape[1], 0, shared) for part in rest)],
    }
    assert_same_training(model, packed, batches)


def test_the_mask_of_flex_attention_says_the_same(tiny_folder):
    prefix, first, second = random_ids(9), random_ids(4), random_ids(7)
    row = {
        "input_ids": torch.cat([prefix, first, second])[None],
        "segments": [(9, 0, 0), (4, 0, 9), (7, 0, 9)],
    }
    with torch.no_grad():
        expected = load_model(tiny_folder, attn_implementation="sdpa")(**row).logits
        found = load_model(tiny_folder, attn_implementation="flex_attention")(**row).logits
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rotary_factors_go_by_the_document_in_a_packed_row(tiny_folder):
    model = load_model(tiny_folder, dtype=torch.float64)
    model.config.original_max_position_embeddings = 16
    short, long = random_ids(10), random_ids(20)
    with torch.no_grad():
        packed = model(input_ids=torch.cat([short, long])[None], segments=[(10, 0, 0), (20, 0, 0)])
        assert_close(packed.logits[:, :10], model(input_ids=short[None]).logits)
        assert_close(packed.logits[:, 10:], model(input_ids=long[None]).logits)


def test_sliding_window_holds_inside_documents(tiny_folder):
    for attention in ("sdpa", "eager"):
        model = load_model(tiny_folder, dtype=torch.float64, attn_implementation=attention)
        model.config.sliding_window = 4
        first, second = random_ids(12), random_ids(8)
        with torch.no_grad():
            packed = model(
                input_ids=torch.cat([first, second])[None], segments=[(12, 0, 0), (8, 0, 0)]
            ).logits
            assert_close(packed[:, :12], model(input_ids=first[None]).logits)
            assert_close(packed[:, 12:], model(input_ids=second[None]).logits)


def test_positions_go_on_behind_a_shared_prefix():
    positions, lengths = segment_positions([Segment(3), Segment(2, 0, 3), Segment(4, 0, 3)])
    assert positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert lengths.tolist() == [7, 7, 7, 5, 5, 7, 7, 7, 7]


def test_label_places_give_the_same_loss(model):
    ids = random_ids(30).view(2, 15)
    labels = ids.clone()
    labels[:, :9] = -100
    places = (labels.flatten() != -100).nonzero()[:, 0]
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels, label_places=places).loss
        assert_close(found, model(input_ids=ids, labels=labels).loss)


def test_segments_that_do_not_fill_the_row_are_refused(model):
    with pytest.raises(ValueError, match="one row of 9 tokens"):
        model(input_ids=random_ids(10)[None], segments=[(9, 0, 0)])


def test_a_prefix_may_be_any_stretch_of_the_row(model):
    ids = torch.randint(3, 400, (1, 24))
    alone = model(input_ids=ids).logits[0, 12:]
    for before in ([(12, 0, 0)], [(6, 0, 0), (6, 0, 6)], [(20, 0, 0)]):
        row = (
            torch.cat([ids[:, :12], ids[:, :8], ids[:, 12:]], dim=1) if before[0][0] == 20 else ids
        )
        found = model(input_ids=row, segments=[*before, (12, 0, 12)]).logits[0, -12:]
        assert_close(found, alone, **EXACT)


def test_many_documents_cost_no_gradients_of_the_whole_row(model):
    def made(count):
        ids = torch.randint(3, 400, (1, 512))
        segments = [(512 // count, 0, 0)] * count
        return made_bytes(
            lambda: model(input_ids=ids, labels=ids, segments=segments).loss.backward()
        )

    model.train()
    many, few = made(64), made(4)
    model.eval()
    assert many < 1.2 * few
