"""Next-token loss over the supervised places only, in chunks.

Letters: B rows, T tokens, H hidden size, L supervised places.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100
CHUNK = 1024


def _chunk_loss(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    logits = head(hidden)
    # Not narrower than float32; double stays double.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and loss in one, chunk by chunk, the gradients made while the logits are there.

    They are no larger than what would be kept for them, and the logits are made once instead of
    twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, grad: bool
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        matrix = weight.to(dtype)
        hidden_grad = torch.empty_like(hidden) if grad and ctx.needs_input_grad[0] else None
        weight_grad = None
        if grad and ctx.needs_input_grad[1]:
            weight_grad = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, wide))
        for start in range(0, hidden.shape[0], CHUNK):
            own = hidden[start : start + CHUNK].to(dtype)
            wanted = targets[start : start + CHUNK, None]
            known = wanted != IGNORE_INDEX
            wanted = wanted.clamp(min=0)
            logits = (own @ matrix.t()).to(wide)
            top = logits.amax(-1, keepdim=True)
            wanted_logits = logits.gather(1, wanted) - top
            # In place: the logits become probabilities, and these their own gradient.
            sums = logits.sub_(top).exp_().sum(-1, keepdim=True)
            total += ((sums.log() - wanted_logits) * known).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            logits.div_(sums).scatter_add_(1, wanted, -torch.ones_like(sums))
            gradient = logits.mul_(known).to(dtype)
            if hidden_grad is not None:
                hidden_grad[start : start + CHUNK] = gradient @ matrix
            if weight_grad is not None:
                weight_grad += gradient.t() @ own
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if one is None else one * factor.to(one.dtype) for one in ctx.saved_tensors)
        return (*grads, None, None, None)


def _sum_of_losses(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Add the losses of supervised places (L, H) up, by the plain head or through the module."""
    if _is_plain(head):
        dtype, device = hidden.dtype, hidden.device.type
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if casts and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        keeps = torch.is_grad_enabled()
        return _LinearCrossEntropy.apply(hidden, head.weight, targets, dtype, keeps)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], CHUNK):
        part = (hidden[start : start + CHUNK], targets[start : start + CHUNK], head)
        if torch.is_grad_enabled() and hidden.shape[0] > CHUNK:
            total = total + checkpoint(_chunk_loss, *part, use_reentrant=False)
        else:
            total = total + _chunk_loss(*part)
    return total


def _is_plain(head: nn.Module) -> bool:
    """Tell whether the head is its weight alone: no adapter, no shards, nobody who listens."""
    return (
        type(head) is nn.Linear
        and head.bias is None
        and type(head.weight) is nn.Parameter
        and not hasattr(head.weight, "ds_id")
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    )


def supervised_loss(
    hidden_states: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    num_items_in_batch: Tensor | int | None = None,
    label_places: Tensor | None = None,
    are_selected: bool = False,
) -> Tensor:
    """Compute the token-mean cross entropy without logits of unsupervised places.

    The head runs on at most ``CHUNK`` places at a time, so memory does not grow with vocabulary
    times length. A plain head makes its gradients at once; through adapters, shards or hooks the
    logits are made again in the backward pass.

    Args:
        hidden_states: (B, T, H) after the final norm.
        labels: (B, T) ids, ``-100`` where nothing is supervised; place i is predicted from place i
            - 1.
        head: Maps (L, H) to logits (L, vocabulary).
        num_items_in_batch: Number of supervised places of the whole optimizer step (all
            micro-batches, all ranks); None takes this batch's own.
        label_places: (L,) places of the labels in the flattened (B * T), where the caller knows
            them; None finds them, for which the host waits for the device.
        are_selected: The states are (1, L, H), of the places before those of the labels alone.

    Returns:
        Float32 scalar: sum over the supervised places / their number; 0 with a graph when there is
            none.
    """
    if label_places is None:
        label_places = find_label_places(labels)
    hidden = hidden_states.flatten(0, 1)
    if not are_selected:
        hidden = hidden.index_select(0, label_places - 1)
    targets = labels.flatten().index_select(0, label_places)
    # Every rank must touch the head, also one whose batch has nothing to learn.
    total = hidden_states.new_zeros((), dtype=torch.float32)
    if hidden.shape[0] == 0:
        total = total + 0.0 * head(hidden_states[:, :1]).float().sum()
    else:
        total = total + _sum_of_losses(hidden, targets, head)
    count = hidden.shape[0] if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        return total / count.to(total.device).clamp(min=1)
    return total / max(count, 1)


def find_label_places(labels: Tensor) -> Tensor:
    """Find the places (L,) of supervised labels in the flattened (B * T).

    The first label of a row is predicted by nothing. The host waits for the device.
    """
    supervised = nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0))
    return supervised.flatten().nonzero()[:, 0]
