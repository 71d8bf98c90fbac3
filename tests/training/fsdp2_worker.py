"""Trains one step with FSDP2 on a gloo mesh, or bare on one process, and stores what came out.

    python -m tests.training.fsdp2_worker BASE DATA FOLDER METHOD OUT.pt

DATA is a record file of which every rank takes its share; METHOD is ``full`` or ``LoRA``.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from phi3v import load_model, load_processor
from phi3v.data.collator import Collator
from phi3v.data.dataset import SupervisedDataset
from phi3v.data.processes import disconnect, rank, world_size
from phi3v.training.adapters import add_adapters
from phi3v.training.arguments import LoraArguments, ModelArguments
from phi3v.training.callbacks import GradientCheck
from phi3v.training.parts import freeze_parts, plan_parts


def build(base: str, method: str) -> Any:
    torch.manual_seed(0)
    lora = LoraArguments(lora_enable=method == "LoRA", lora_rank=4, lora_dropout=0.0)
    plan = plan_parts(ModelArguments(model_id=base), lora)
    model = load_model(base)
    model.model.link_vision_without_images = True
    if method == "LoRA":
        model = add_adapters(model, plan, lora)
    freeze_parts(model, plan)
    return model.train()


def shard(model: Any) -> None:
    kinds = model._no_split_modules or model.get_base_model()._no_split_modules
    for module in model.modules():
        if type(module).__name__ in kinds:
            fully_shard(module)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def main() -> None:
    torch.set_num_threads(1)
    base, data, folder, method, out = sys.argv[1:6]
    several = world_size() > 1
    if several:
        distributed.init_process_group("gloo")
    processor = load_processor(base, num_crops=2)
    dataset = SupervisedDataset(data, processor, folder, max_num_frames=2)
    collate = Collator(processor.tokenizer.pad_token_id, processor.image_token_id)
    model = build(base, method)
    if several:
        shard(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, eps=1e-4)
    check, arguments = GradientCheck(), TrainingArguments(use_cpu=True, report_to="none")
    place: Any = (arguments, TrainerState(), TrainerControl())
    check.on_train_begin(*place, model=model)
    batches = [collate([dataset[position]]) for position in range(4)]
    count = sum(int(batch["labels"][:, 1:].ne(-100).sum()) for batch in batches)
    losses = []
    for batch in batches[rank() :: world_size()]:
        # Gradients are averaged over the ranks.
        loss = model(**batch, num_items_in_batch=count).loss * world_size()
        loss.backward()
        losses.append(loss.detach())
    check.on_pre_optimizer_step(*place, model=model)
    optimizer.step()
    total = torch.stack(losses).sum() / world_size()
    if several:
        distributed.all_reduce(total)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options) if several else model.state_dict()
    if rank() == 0:
        torch.save({"loss": total, "weights": dict(weights)}, Path(out))
    disconnect()


if __name__ == "__main__":
    main()
