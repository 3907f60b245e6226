"""Statistics of one batch of exact sums, by filter, and the running statistics of the norm that follow them.

Where a library serves, all of it is one call on the exact moments (`prepared`); the rest is torch's way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.training import steps_of
from esbnn_core.training.on_bits.rows import ChannelSum, pieces


class BatchStatistics(NamedTuple):
    """Statistics of the sums.

    Attributes:
        mean: (O,) float64.
        var: (O,) float64, biased.
        rows: number of rows that they are taken over.
        reduce: see Plan.
    """

    mean: Tensor
    var: Tensor
    rows: int
    reduce: Callable[[Tensor], Any] | None


def reducer(norm: nn.Module) -> Callable[[Tensor], Any] | None:
    """What sums a tensor in place over the processes of a SyncBatchNorm, None where it sees this process alone."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    if dist.get_world_size(group) == 1:
        return None
    return lambda tensor: dist.all_reduce(tensor, group=group)


def batch_statistics(
    sums: Tensor,
    reduce: Callable[[Tensor], Any] | None,
    dtype: torch.dtype,
    largest: int,
    moments: Tensor | None = None,
) -> BatchStatistics:
    """The statistics of rows (M, O) int32 of sums; a channel's copies share them.

    Args:
        sums: none of them above `largest`.
        reduce: see Plan.
        dtype: of the steps after the sums.
        largest: +-1 products of a sum.
        moments: theirs where they are known already, as `moments` of kernels/training.py makes them.
    """
    both = steps_of(sums).moments(sums, largest) if moments is None else moments
    count = sums.shape[0]
    # whole numbers, so that a large mean costs the variance no digits
    total, squares, near = moments_in_torch(sums, dtype) if both is None else (*both.double(), both.new_zeros(()))
    if reduce is not None:
        # each process has another base, and sums about two bases cannot be added: back to 0 first, in float64
        squares = squares + 2 * near * total + count * near * near
        total = total + count * near
        shared = torch.stack([total, squares, torch.full_like(total, count)])
        reduce(shared)
        total, squares, count, near = shared[0], shared[1], int(shared[2, 0].item()), torch.zeros_like(near)
    offset = total / count
    return BatchStatistics(near + offset, (squares / count - offset * offset).clamp_(min=0), count, reduce)


@torch.no_grad()
def prepared(norm: _BatchNorm, call: NormCall, shift_in: Tensor | None) -> Tensor | None:
    """Centre, factor and offset of the tail (call.forward_sizes(), float32) by a library, running statistics updated.

    None, and nothing is changed, where no library serves or the norm has no momentum.
    """
    running = None
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        if norm.momentum is None:  # by the number of batches, which the host does not know
            return None
        running = (norm.running_mean, norm.running_var)
    made = steps_of(call.moments).norm(call, norm.bias, shift_in, running, norm.momentum or 0.0)
    if made is not None and running is not None:
        torch.autograd.graph.increment_version(running)  # who keeps something made of them has to see it
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return made


def from_moments(moments: Tensor, rows: int) -> Tensor:
    """Mean and biased variance (2, O) float64 from sums and sums of squares (2, O) int64."""
    mean, square = moments.double() / rows
    return torch.stack([mean, (square - mean * mean).clamp_(min=0)])


def moments_in_torch(sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and sums of squares of rows (M, O) less a whole number near their mean, and that number: (O,) float64 each.

    Without that number a large mean would cost the variance digits, because pieces are added up in `dtype`.
    """
    filters = sums.shape[1]
    first = ChannelSum(filters, sums.device)
    second = ChannelSum(filters, sums.device)
    base: Tensor | None = None
    for piece in pieces(sums):
        d = sums[piece].to(dtype)
        base = d.mean(0).round_() if base is None else base
        d.sub_(base)
        first.add(d)
        second.add(d.square_())
    assert base is not None
    return first.total, second.total, base.double()


@torch.no_grad()
def track_(norm: _BatchNorm, statistics: BatchStatistics, scale: Tensor | None, copies: int) -> None:
    """Update the norm's running statistics by the scaled and tiled sums, as the norm's forward would."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    mean, rows = statistics.mean, statistics.rows
    var = statistics.var * (rows / (rows - 1))
    if scale is not None:
        mean, var = mean * scale, var * scale * scale
    for running, new in ((norm.running_mean, mean), (norm.running_var, var)):
        running.mul_(1 - (momentum or 0.0)).add_((new * (momentum or 0.0)).to(running.dtype).repeat(copies))
