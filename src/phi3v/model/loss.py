"""Next-token loss over the supervised places only, in chunks.

Letters: B rows, T tokens, H hidden size, L supervised places.
"""

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


def supervised_loss(
    hidden_states: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    num_items_in_batch: Tensor | int | None = None,
    label_places: Tensor | None = None,
) -> Tensor:
    """Compute the token-mean cross entropy without logits of unsupervised places.

    The head runs on at most ``CHUNK`` places at a time and its logits are made again in the
    backward pass, so memory does not grow with vocabulary times length.

    Args:
        hidden_states: (B, T, H) after the final norm.
        labels: (B, T) ids, ``-100`` where nothing is supervised; place i is predicted from place i
            - 1.
        head: Maps (L, H) to logits (L, vocabulary).
        num_items_in_batch: Number of supervised places of the whole optimizer step (all
            micro-batches, all ranks); None takes this batch's own.
        label_places: (L,) places of the labels in the flattened (B * T), where the caller knows
            them; None finds them, for which the host waits for the device.

    Returns:
        Float32 scalar: sum over the supervised places / their number; 0 with a graph when there is
            none.
    """
    if label_places is None:
        supervised = nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0))
        label_places = supervised.flatten().nonzero()[:, 0]
    hidden = hidden_states.flatten(0, 1).index_select(0, label_places - 1)
    targets = labels.flatten().index_select(0, label_places)
    # Every rank must touch the head, also one whose batch has nothing to learn.
    total = hidden_states.new_zeros((), dtype=torch.float32)
    if hidden.shape[0] == 0:
        total = total + 0.0 * head(hidden_states[:, :1]).float().sum()
    for start in range(0, hidden.shape[0], CHUNK):
        part = (hidden[start : start + CHUNK], targets[start : start + CHUNK], head)
        if torch.is_grad_enabled() and hidden.shape[0] > CHUNK:
            total = total + checkpoint(_chunk_loss, *part, use_reentrant=False)
        else:
            total = total + _chunk_loss(*part)
    count = hidden.shape[0] if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        return total / count.to(total.device).clamp(min=1)
    return total / max(count, 1)
