"""Where the channels of a carried tensor are: the layout that expand_ follows through a traced forward.

A nominal tensor has channels 0..C-1. The carried one has tau*g copies of each, at positions that the operations before
it decide. A layer gives whole copies one after the other, torch.cat a run of whole copies for each of its inputs, and a
channel shuffle interleaves. `Layout` records for every carried position which copy of which channel it holds. An
operation that only moves channels is run on these index tensors as it will be run on the values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["batch", "space", "one", "channels", "flat"]
"""Of a dimension: samples; places or anything else that is not channels; size 1; channels; the places of channel 0,
then those of channel 1 and so on, as flatten(1) of a map gives them."""

MAP: tuple[Role, ...] = ("batch", "channels", "space", "space")


def _count(number: int) -> Tensor:
    return torch.arange(number, device="cpu")


@dataclass(frozen=True, eq=False)
class Layout:
    """Roles of a tensor's dimensions, and what its channels are in the nominal and in the carried network.

    Attributes:
        roles: one for each dimension.
        nominal: channel of each nominal position, one dimension for each role "channels" or "flat"; None for a tensor
            without channels, such as a mean over them.
        copy: copy that each carried position holds.
        index: channel that each carried position holds.
    """

    roles: tuple[Role, ...]
    nominal: Tensor | None = None
    copy: Tensor | None = None
    index: Tensor | None = None

    @staticmethod
    def of_order(roles: Sequence[Role], order: Tensor, channels: int) -> "Layout":
        """A settled layout from its order: position -> copy * channels + channel."""
        return Layout(tuple(roles), _count(channels), order // channels, order % channels)

    @staticmethod
    def whole_copies(roles: Sequence[Role], channels: int, wide: int) -> "Layout":
        """Whole copies one after the other."""
        return Layout.of_order(roles, _count(wide * channels), channels)

    @property
    def has_channels(self) -> bool:
        """Whether one of the dimensions has channels."""
        return self.nominal is not None

    @property
    def channels(self) -> int:
        """C."""
        assert self.nominal is not None
        return self.nominal.numel()

    @property
    def dim(self) -> int | None:
        """The dimension with all channels; None if several share them, or for a tensor without channels."""
        dims = self.channel_dims
        return dims[0] if len(dims) == 1 else None

    @property
    def channel_dims(self) -> list[int]:
        """The dimensions that the channels are spread over."""
        return [i for i, role in enumerate(self.roles) if role in ("channels", "flat")]

    @property
    def is_flat(self) -> bool:
        """Whether the channels' places are merged into their dimension."""
        return "flat" in self.roles

    @property
    def order(self) -> Tensor:
        """Position -> copy * C + channel, of a settled layout."""
        assert self.copy is not None and self.index is not None
        return self.copy * self.channels + self.index

    @property
    def has_whole_copies(self) -> bool:
        """Whether whole copies are one after the other."""
        return self.dim is not None and torch.equal(self.order, _count(self.order.numel()))

    def settled(self) -> "Layout | None":
        """The same with channels counted from 0; None unless every channel it has is there in all copies.

        A layout whose channels are spread over several dimensions stays as it is.
        """
        if self.nominal is None or self.copy is None or self.index is None or self.dim is None:
            return self
        lookup = torch.full((int(self.nominal.max()) + 1 + int(self.index.max()),), -1, device="cpu")
        lookup[self.nominal] = _count(self.channels)
        index = lookup[self.index]
        order = self.copy * self.channels + index
        if (index < 0).any() or not torch.equal(order.sort().values, _count(order.numel())):
            return None
        return Layout(self.roles, _count(self.channels), self.copy, index)

    def moved(self, dims: Sequence[int]) -> "Layout":
        """After a permute."""
        roles = tuple(self.roles[dim] for dim in dims)
        if self.nominal is None or self.copy is None or self.index is None:
            return Layout(roles)
        own = self.channel_dims
        inner = [own.index(dim) for dim in dims if dim in own]
        return (
            Layout(roles, self.nominal.permute(inner), self.copy.permute(inner), self.index.permute(inner)).settled()
            or self
        )

    def with_roles(self, roles: Sequence[Role]) -> "Layout":
        """The same channels under other roles, of which as many have channels."""
        return Layout(tuple(roles), self.nominal, self.copy, self.index)

    def with_order(self, order: Tensor) -> "Layout":
        """The same channels, one dimension of them, in another order."""
        return Layout.of_order(self.roles, order, self.channels)

    def split(self, roles: Sequence[Role], nominal: Sequence[int], carried: Sequence[int]) -> "Layout | None":
        """The channels in other sizes, nominal and carried, under roles with as many channel dimensions; else None."""
        assert self.nominal is not None and self.copy is not None and self.index is not None
        shape = list(carried)
        new = Layout(
            tuple(roles), self.nominal.reshape(list(nominal)), self.copy.reshape(shape), self.index.reshape(shape)
        )
        return new.settled()

    def taken(self, dim: int, nominal: slice | int, carried: slice | int) -> "Layout | None":
        """A part of the channels along one of their dimensions; None unless it holds all copies of what it holds."""
        assert self.nominal is not None and self.copy is not None and self.index is not None
        at = self.channel_dims.index(dim)
        first, then = ((slice(None),) * at + (part,) for part in (nominal, carried))
        roles = self.roles if isinstance(nominal, slice) else self.roles[:dim] + self.roles[dim + 1 :]
        kept = self.nominal[first].numel()
        if kept == 0 or self.copy[then].numel() * self.channels != kept * self.copy.numel():
            return None
        return Layout(roles, self.nominal[first], self.copy[then], self.index[then]).settled()


def joined(layouts: Sequence[Layout]) -> Layout:
    """After torch.cat along the channels: a run for each input."""
    channels = sum(layout.channels for layout in layouts)
    parts, start = [], 0
    for layout in layouts:
        assert layout.copy is not None and layout.index is not None
        parts.append(layout.copy * channels + layout.index + start)
        start += layout.channels
    return Layout.of_order(layouts[0].roles, torch.cat(parts), channels)


def runs(widths: Sequence[int], wide: int) -> Tensor:
    """Order of a run of whole copies for each of several widths."""
    return joined([Layout.whole_copies(("channels",), width, wide) for width in widths]).order


def shuffled(layout: Layout, groups: int) -> Layout | None:
    """After a channel shuffle."""
    assert layout.copy is not None and layout.dim is not None
    sizes = layout.channels, layout.copy.numel()
    if any(size % groups for size in sizes):
        return None
    dim = layout.dim
    roles = [*layout.roles[: dim + 1], "channels", *layout.roles[dim + 1 :]]
    split = layout.split(roles, (groups, -1), (groups, -1))  # type: ignore[arg-type]
    assert split is not None
    dims = list(range(len(roles)))
    dims[dim], dims[dim + 1] = dim + 1, dim
    return split.moved(dims).split(layout.roles, (sizes[0],), (sizes[1],))


def unshuffled(layout: Layout, factor: int) -> Layout:
    """After a pixel unshuffle: a channel becomes factor^2 of them, next to each other."""
    assert layout.copy is not None and layout.index is not None
    inner = _count(factor * factor)
    channels = layout.channels * len(inner)
    index = (layout.index[:, None] * len(inner) + inner).flatten()
    return Layout.of_order(layout.roles, layout.copy.repeat_interleave(len(inner)) * channels + index, channels)


def pixel_shuffled(layout: Layout, factor: int) -> Layout | None:
    """After a pixel shuffle: factor^2 channels next to each other become one; None if they are apart."""
    assert layout.copy is not None and layout.index is not None
    size = factor * factor
    if layout.channels % size or layout.copy.numel() % size:
        return None
    copy, index = layout.copy.reshape(-1, size), layout.index.reshape(-1, size)
    together = (copy == copy[:, :1]).all() and torch.equal(index, index[:, :1] + _count(size))
    if not together or (index[:, 0] % size).any():
        return None
    channels = layout.channels // size
    return Layout.of_order(layout.roles, copy[:, 0] * channels + index[:, 0] // size, channels)


def order_of_features(order: Tensor, channels: int, features: int) -> Tensor:
    """Order of the features of a flattened map from that of its channels: each has features / channels places."""
    places = features // channels
    copy, index = order // channels, order % channels
    return ((copy * features + index * places)[:, None] + _count(places)).flatten()


def first_copies(order: Tensor, channels: int) -> Tensor:
    """Positions of copy 0 of every channel, in the channels' order."""
    return order.argsort()[:channels]


def positions(order: Tensor, wanted: Tensor) -> Tensor:
    """Positions in a tensor of `order` that make one of the order `wanted`."""
    return order.argsort()[wanted]
