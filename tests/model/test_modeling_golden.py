"""The model against vectors of the original code."""

from pathlib import Path

import pytest
import torch
from tests import golden_cases as gc
from torch.testing import assert_close

from phi3v.model.loss import supervised_loss
from phi3v.model.rotary import rotary_tables

FORWARD_CASES = (
    "text_short",
    "text_answer",
    "text_pad_inside",
    "text_len_orig",
    "text_len_orig_plus1",
    "text_long",
    "image_nc1",
    "image_nc1_resized",
    "image_nc4",
    "images3_nc2",
    "batch2_image_text",
    "batch2_images_1_2",
    "left_pad_positions",
)
# The kernels differ in their masks only: one case for each form of mask is enough every time.
SDPA_CASES = ("text_len_orig_plus1", "batch2_image_text", "left_pad_positions")
FORWARD = [
    *((name, "eager") for name in FORWARD_CASES),
    *(
        pytest.param(name, "sdpa", marks=[] if name in SDPA_CASES else pytest.mark.slow)
        for name in FORWARD_CASES
    ),
]
GRADIENT_CASES = ("batch2_images_1_2", "batch2_image_text", "text_answer", "text_pad_inside")
ROW_OF_PAD_ID = 32000


def assert_logits_match(outputs, stored, probe_ids, mask):
    assert_close(outputs.hidden_states[-1][mask], stored["last_hidden"][mask], **gc.LOGITS)
    assert_close(outputs.logits[..., probe_ids][mask], stored["logits_probe"][mask], **gc.LOGITS)
    spread = torch.logsumexp(outputs.logits, dim=-1)
    assert_close(spread[mask].double(), stored["logits_lse"][mask].double(), **gc.LOGITS)
    assert_close(outputs.logits.amax(-1)[mask], stored["logits_max"][mask], **gc.LOGITS)


@pytest.mark.parametrize(("name", "attention"), FORWARD)
@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_forward_equals_original(golden: Path, checkpoint: str, name: str, attention: str) -> None:
    case_id = f"{checkpoint}_{name}"
    stored = gc.tensors(golden, case_id)
    model = gc.model(golden, checkpoint, attn_implementation=attention)
    inputs = gc.inputs(golden, case_id)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        # What forward does with labels; the gradients below go through it.
        loss = supervised_loss(outputs.hidden_states[-1], stored["labels"], model.lm_head)
    mask = stored["attention_mask"].bool()
    assert_logits_match(outputs, stored, gc.index(golden)["probe_ids"], mask)
    assert_close(loss.double(), stored["loss"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_sliding_window_equals_original(golden: Path, checkpoint: str) -> None:
    case_id = f"{checkpoint}_sliding64"
    stored = gc.tensors(golden, case_id)
    for attention in ("eager", "sdpa"):
        model = gc.model(golden, checkpoint, attn_implementation=attention)
        model.config.sliding_window = 64
        with torch.no_grad():
            outputs = model(**gc.inputs(golden, case_id), output_hidden_states=True)
        mask = stored["attention_mask"].bool()
        assert_logits_match(outputs, stored, gc.index(golden)["probe_ids"], mask)


@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_every_stage_of_an_image_equals_original(golden: Path, checkpoint: str) -> None:
    case_id = f"{checkpoint}_image_nc1"
    stored, inputs = gc.tensors(golden, case_id), gc.inputs(golden, case_id)
    model = gc.model(golden, checkpoint)
    vision = model.model.vision_embed_tokens
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        crops = inputs["pixel_values"][0]
        features = vision.encode_crops(crops)
        tokens = vision(inputs["pixel_values"], inputs["image_sizes"])
    assert_close(
        features[:, ::36][: stored["vision_features_sample"].shape[0]],
        stored["vision_features_sample"],
        **gc.LOGITS,
    )
    assert_close(tokens, stored["image_embeds"], **gc.LOGITS)
    for layer, hidden in enumerate(outputs.hidden_states):
        assert_close(hidden[0, ::3], stored[f"hidden_{layer}"], **gc.LOGITS)


@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_bfloat16_stays_near_original(golden: Path, checkpoint: str) -> None:
    case_id = f"{checkpoint}_image_nc1_bf16"
    stored = gc.tensors(golden, case_id)
    model = gc.model(golden, checkpoint, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(**gc.inputs(golden, case_id)).logits
    difference = (logits[..., gc.index(golden)["probe_ids"]] - stored["logits_probe"].float()).abs()
    # The original differs from its own float32 run by 0.02 on average and up to some tenths.
    assert difference.mean() < 0.05
    assert difference.max() < 0.6


@pytest.mark.parametrize("name", GRADIENT_CASES)
@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_gradients_equal_original(golden: Path, checkpoint: str, name: str) -> None:
    item = gc.case(golden, f"{checkpoint}_grad_{name}")
    stored = gc.tensors(golden, f"{checkpoint}_grad_{name}")
    model = gc.model(golden, checkpoint).train()
    loss = model(**gc.inputs(golden, f"{checkpoint}_{name}"), labels=stored["labels"]).loss
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert sorted(gradients) == sorted(item["param_names"])
    assert_close(loss.double().detach(), stored["loss"][0], rtol=1e-5, atol=0)
    # On purpose ours: the published class never trains the row of its padding id, not even inside a
    # text.
    table = gradients["model.embed_tokens.weight"]
    if name == "text_pad_inside":
        assert table[ROW_OF_PAD_ID].abs().max() > 0
    table[ROW_OF_PAD_ID] = 0
    norms = torch.stack([gradients[key].double().norm() for key in item["param_names"]])
    # Key biases have no true gradient: what is left of them is rounding.
    assert_close(norms, stored["grad_norms"], rtol=1e-3, atol=1e-6)
    for key, value in stored.items():
        if key.startswith("grad/"):
            parameter, _, stride = key.removeprefix("grad/").partition("[::")
            step = int(stride.rstrip("]")) if stride else 1
            assert_close(gradients[parameter][::step], value, rtol=1e-3, atol=1e-5)
    assert_close(table[stored["embed_rows"]], stored["grad_embed_rows"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("checkpoint", gc.CHECKPOINTS)
def test_eight_optimizer_steps_follow_original(golden: Path, checkpoint: str) -> None:
    item = gc.case(golden, f"{checkpoint}_train8")
    stored = gc.tensors(golden, f"{checkpoint}_train8")
    model = gc.model(golden, checkpoint).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for step, case_id in enumerate(item["batches"]):
        loss = model(
            **gc.inputs(golden, case_id), labels=gc.tensors(golden, case_id)["labels"]
        ).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        found = torch.stack([loss.detach(), norm]).double()
        assert_close(found, stored["loss_and_gradnorm"][step], rtol=1e-3, atol=1e-4)
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(**gc.inputs(golden, f"{checkpoint}_text_answer")).logits
    assert_close(
        logits[..., gc.index(golden)["probe_ids"]],
        stored["final_logits_probe"],
        atol=2e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("model", ["phi3", "phi35"])
def test_rotary_tables_of_the_published_configs(golden: Path, model: str) -> None:
    stored = gc.tensors(golden, "rope_real_configs")
    config = published_rope(golden, model)
    for regime, length in (("short", 4096), ("long", 131072)):
        item = next(
            i
            for i in gc.case(golden, "rope_real_configs")["items"]
            if i["key"] == f"{model}_{regime}"
        )
        cos, sin = rotary_tables(
            config, torch.tensor([item["positions"]]), torch.tensor([[length]]), dtype=torch.float32
        )
        for row, position in enumerate(item["positions"]):
            # Two units in the last place of the angle, which is at most the position.
            tolerance = {"atol": 2 * 1.2e-7 * max(position, 10), "rtol": 0}
            assert_close(cos[0, row], stored[f"{model}_{regime}/cos"][row], **tolerance)
            assert_close(sin[0, row], stored[f"{model}_{regime}/sin"][row], **tolerance)


def published_rope(golden: Path, model: str):
    """Recover the factor lists of a published config from its own cos and sin at position 1."""
    from phi3v import Phi3VConfig

    stored = gc.tensors(golden, "rope_real_configs")
    base = 10000.0 ** (torch.arange(0, 96, 2).double() / 96)
    factors = {}
    for regime in ("short", "long"):
        cos, sin = (stored[f"{model}_{regime}/{f}"][1, :48].double() for f in ("cos", "sin"))
        # The published factors have two decimals; float32 cos and sin give five digits.
        factors[regime] = (1 / (torch.atan2(sin, cos) * base)).numpy().round(2).tolist()
    return Phi3VConfig(
        max_position_embeddings=131072,
        rope_scaling={
            "type": "su",
            "short_factor": factors["short"],
            "long_factor": factors["long"],
        },
    )
