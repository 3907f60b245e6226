"""Numbers that a forward reads from the shapes of its tensors, in the nominal and in the carried network."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esbnn_core.transforms.expand_classes import Key
from esbnn_core.transforms.expand_layout import Layout, Role


@dataclass(frozen=True)
class Size:
    """A whole number of a forward's arithmetic.

    Attributes:
        nominal: its value in the plain network, None where only an input's size decides it.
        carried: its value in the expanded network.
        role: of the dimension that it was read from, if it is read as it is.
        sources: the tensors whose number of channels it depends on.
    """

    nominal: int | None
    carried: int | None
    role: Role | None = None
    sources: tuple[Key, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether expansion changes it, as far as is known."""
        return self.nominal != self.carried or (self.nominal is None and bool(self.sources))


def constant(number: int) -> Size:
    """A number in the code."""
    return Size(number, number)


def sizes_of(key: Key | None, layout: Layout | None) -> tuple[Size, ...] | None:
    """The shape of a tensor; None if its number of dimensions is unknown."""
    if layout is None:
        return None
    found = []
    spread = iter(zip(layout.nominal.shape, layout.copy.shape, strict=True)) if layout.has_channels else iter(())  # type: ignore[union-attr]
    for role in layout.roles:
        if role in ("channels", "flat"):
            nominal, carried = next(spread)
            known = role == "channels"
            found.append(
                Size(nominal if known else None, carried if known else None, role, () if key is None else (key,))
            )
        else:
            found.append(Size(1, 1, role) if role == "one" else Size(None, None, role))
    return tuple(found)


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}


def calculated(name: str, operands: Sequence[Size]) -> Size:
    """The result of arithmetic on sizes."""
    sources = tuple(dict.fromkeys(key for size in operands for key in size.sources))
    rule = _ARITHMETIC.get(name)
    if rule is None or len(operands) != 2:
        return Size(None, None, None, sources)

    def apply(one: int | None, other: int | None) -> int | None:
        if one is None or other is None or (other == 0 and name in ("floordiv", "mod")):
            return None
        return rule(one, other)

    first, second = operands
    return Size(apply(first.nominal, second.nominal), apply(first.carried, second.carried), None, sources)


def reshaped(layout: Layout, targets: Sequence[Size]) -> Layout | None:
    """After a view or reshape to `targets`, in which -1 is what is left; None where it mixes channels and places."""
    if not layout.has_channels:
        return None
    roles, sizes = list(layout.roles), list(targets)
    head: list[Role] = []
    if roles[0] == "batch":
        if not sizes or not (sizes[0].role == "batch" or _is_rest(sizes[0])):
            return None
        head, roles, sizes = ["batch"], roles[1:], sizes[1:]
    kinds = [role in ("channels", "flat") for role in roles]
    start, end = kinds.index(True), len(kinds) - kinds[::-1].index(True)
    if not all(kinds[start:end]):
        return None
    before, after = roles[:start], roles[end:]
    if layout.is_flat:
        return layout if len(sizes) == 1 and _is_rest(sizes[0]) else None
    if not before and _is_space(after) and len(sizes) == 1 and _is_rest(sizes[0]):
        return layout.with_roles([*head, "flat"]) if layout.dim is not None else None
    for u in range(len(sizes)):
        for v in range(u + 1, len(sizes) + 1):
            if v - u > 1 and 1 in (sizes[u].nominal, sizes[v - 1].nominal):
                continue  # a dimension of size 1 beside the channels is not a part of them
            exact = any(_is_rest(size) for size in sizes[u:v])  # then nothing of the rest may be anything but channels
            left, right = _places(before, sizes[:u], exact), _places(after, sizes[v:], exact)
            split = None if left is None or right is None else _split(layout, sizes[u:v])
            if split is not None:
                new_roles = [*head, *(left or []), *["channels"] * (v - u), *(right or [])]
                return layout.split(new_roles, *split)  # type: ignore[arg-type]
    return None


def _is_rest(size: Size) -> bool:
    return size.nominal == -1


def _is_space(roles: Sequence[Role]) -> bool:
    return "space" in roles


def _places(roles: Sequence[Role], sizes: Sequence[Size], exact: bool) -> list[Role] | None:
    """New roles of dimensions that are not channels; None if the sizes cannot be theirs."""
    if any(size.sources for size in sizes):
        return None
    if not _is_space(roles):
        return ["one"] * len(sizes) if all(size.nominal == 1 for size in sizes) else None
    if exact and (len(roles) != len(sizes) or any(size.role != "space" and size.nominal != 1 for size in sizes)):
        return None
    return ["one" if size.nominal == 1 else "space" for size in sizes]


def _split(layout: Layout, sizes: Sequence[Size]) -> tuple[list[int], list[int]] | None:
    """Nominal and carried sizes of the channel dimensions, -1 filled in; None if they do not make all channels."""
    assert layout.copy is not None
    worlds = []
    for total, given in (
        (layout.channels, [size.nominal for size in sizes]),
        (layout.copy.numel(), [-1 if _is_rest(size) else size.carried for size in sizes]),
    ):
        product = 1
        for number in given:
            if number is None or number == 0 or number < -1:
                return None
            product *= 1 if number == -1 else number
        if given.count(-1) > 1 or total % product or (-1 not in given and product != total):
            return None
        worlds.append([total // product if number == -1 else number for number in given])
    return worlds[0], worlds[1]  # type: ignore[return-value]
