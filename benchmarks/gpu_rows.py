"""What is measured on a GPU: one row for each way to train or to answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A training step with weights of the published sizes.

    Attributes:
        name: As in the table.
        method: ``lora`` or ``full``; the image projection trains, too.
        batch: Kind of `make_groups`, or ``pack-N``: packs of N tokens.
        arm: Way to make the step.
        num_crops: Most crops of a picture.
        rank: Of the adapters.
        bits: Of the frozen base.
        train_vision: Whether the tower trains, fully.
        optimizer: ``fused`` or ``8bit`` (bitsandbytes) AdamW.
        asked: Samples a second that were set out to be reached on an H100.
        asked_gb: Memory that was, in 1e9 bytes.
    """

    name: str
    method: str
    batch: str
    arm: str = "ours"
    num_crops: int = 16
    rank: int = 64
    bits: int = 16
    train_vision: bool = False
    optimizer: str = "fused"
    asked: float | None = None
    asked_gb: float | None = None


@dataclass(frozen=True)
class Answers:
    """Writing answers, greedily, each about one picture.

    Attributes:
        name: As in the table.
        rows: Answers at a time.
        num_crops: Most crops of a picture.
        cache: ``dynamic`` or ``static``.
        asked: Tokens a second that were set out to be reached on an H100.
    """

    name: str
    rows: int
    num_crops: int = 4
    cache: str = "dynamic"
    asked: float | None = None


_LOW = "ours-full"
STEPS = (
    Row("LoRA, 4 crops", "lora", "pack-16384", num_crops=4, asked=29, asked_gb=60),
    Row("LoRA, 16 crops", "lora", "pack-16384", asked=13, asked_gb=60),
    Row("LoRA, 16 crops, batch of 4", "lora", "mixed-4"),
    Row("LoRA, 16 crops, batch of 4, original", "lora", "mixed-4", "original-sdpa"),
    Row("LoRA, 16 crops, batch of 4, hf", "lora", "mixed-4", "hf"),
    Row("LoRA, 16 crops, one sample, low memory", "lora", "pictures-1", _LOW, 16, asked=9),
    Row("LoRA, 8 pictures of 4 crops", "lora", "pictures-8", num_crops=4),
    Row("LoRA, 4 questions a picture, apart", "lora", "apart-4"),
    Row("LoRA, 4 questions a picture, shared", "lora", "shared-4"),
    Row("QLoRA, 16 crops", "lora", "pack-16384", rank=16, bits=4, asked=11.5),
    Row(
        "QLoRA, 16 crops, one sample, low memory",
        "lora",
        "pictures-1",
        _LOW,
        rank=16,
        bits=4,
        asked=6,
        asked_gb=5,
    ),
    Row("full, 4 crops", "full", "pack-8192", num_crops=4, optimizer="8bit", asked=20),
    Row("full, 16 crops", "full", "pack-8192", optimizer="8bit", asked=9.3, asked_gb=50),
    Row(
        "full, tower too, 16 crops",
        "full",
        "pack-8192",
        train_vision=True,
        optimizer="8bit",
        asked=8,
        asked_gb=70,
    ),
    Row("full, 16 crops, one sample, low memory", "full", "pictures-1", _LOW, optimizer="8bit"),
)
ANSWERS = (
    Answers("answers, 1 at a time", 1, asked=260),
    Answers("answers, 1 at a time, static cache", 1, cache="static", asked=260),
    Answers("answers, 64 at a time", 64, asked=7000),
)
# Steps that must agree in loss and norm of the gradients: the same samples by several arms.
SAME = (
    ("LoRA, 16 crops, batch of 4", "LoRA, 16 crops, batch of 4, original"),
    ("LoRA, 16 crops, batch of 4", "LoRA, 16 crops, batch of 4, hf"),
    ("LoRA, 4 questions a picture, apart", "LoRA, 4 questions a picture, shared"),
)
