"""Tensors that are carried together or not at all: classes, and why one is nominal."""

from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, eq=False)
class Beyond:
    """A tensor after a module of expand_'s own that makes it nominal or carried for all that read it there.

    Attributes:
        node: the tensor before that module.
    """

    node: fx.Node


Key = fx.Node | Beyond
"""What a class holds."""


class Classes:
    """Disjoint sets of tensors; a blocked one is nominal."""

    def __init__(self) -> None:
        self._parent: dict[Key, Key] = {}
        self._blocked: dict[Key, str] = {}  # by root

    def __contains__(self, key: object) -> bool:
        return key in self._parent

    def root(self, key: Key) -> Key:
        """One tensor that stands for the class of another."""
        while self._parent[key] is not key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key

    def add(self, key: Key, *same: Key) -> None:
        """Enter a tensor, in the class of the tensors `same` if any are given."""
        self._parent[key] = key
        for other in same:
            self.unite(other, key)

    def unite(self, one: Key, other: Key) -> None:
        """Make one class of the classes of two tensors."""
        kept, gone = self.root(one), self.root(other)
        if kept is not gone:
            self._parent[gone] = kept
            if gone in self._blocked:
                self.block(kept, self._blocked[gone])

    def block(self, key: Key, reason: str) -> None:
        """Keep the class of a tensor nominal; the first reason stays."""
        self._blocked.setdefault(self.root(key), reason)

    def reason(self, key: Key) -> str | None:
        """Why the class of a tensor is nominal, None if it is not."""
        return self._blocked.get(self.root(key))
