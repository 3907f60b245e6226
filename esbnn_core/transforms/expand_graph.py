"""Which tensors of a network can be carried expanded: the analysis behind expand_.

The forward is traced with torch.fx. Tensors that are carried together or not at all (the two sides of an addition, the
inputs and the output of a concatenation, the input and output of a BatchNorm) form a class. A class is carried at tau*g
times its nominal width unless something in it cannot be (an operation without a rule, the network's own input and
output). Where the channels of a carried tensor are is its Layout (esbnn_core.transforms.expand_layout).

An operation without a rule takes the classes that it reads with it, unless they can be cut before it. So the forward is
walked over again with the cuts that the walk before asked for, until it asks for none.
"""

from collections.abc import Mapping

from torch import Tensor, fx, nn

from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_classes import Key
from esbnn_core.transforms.expand_layout import Layout
from esbnn_core.transforms.expand_pass import CONNECTED, Pass
from esbnn_core.transforms.expand_places import Cut, Inserted, Place
from esbnn_core.transforms.expand_plan import ExpansionPlan
from esbnn_core.transforms.expand_rules import BINARY, REAL_CONVS, find_obstacle
from esbnn_core.transforms.expand_scope import is_settled
from esbnn_core.transforms.expand_trace import trace
from esbnn_core.transforms.record import Example


class WidthGraph:
    """The tensors of a traced forward in classes that are carried or not, and the layout of each.

    Attributes:
        modules: by name.
        expansion: tau and groups.

    Args:
        model: the network; it is not changed.
        expansion: tau and groups.
        example: arguments of a forward to record; None traces it.

    Raises:
        InputError: torch.fx cannot trace the forward, or it does not run on the example.
    """

    def __init__(self, model: nn.Module, expansion: Expansion, example: Example | None = None) -> None:
        self.expansion = expansion
        self._forward = trace(model, example)
        self.modules = self._forward.modules
        self._unordered = False  # whether an operation needs an order that one reader alone cannot get
        self._walk = self._walk_over({})
        self._live = self._find_live_classes()
        # what more cuts win is not certain: a tensor in another order may join two classes, a tile may be cut again
        if self._unordered:
            self._try_walk({}, reorders=True)
        if entries := self._find_entries():
            self._try_walk(entries, reorders=False)
            if self._unordered:
                self._try_walk(entries, reorders=True)

    def _try_walk(self, cuts: Mapping[fx.Node, Cut], reorders: bool) -> None:
        """Keep the walks that start with these cuts if they expand more than those before."""
        before, live, weights = self._walk, self._live, self._expanded_weights()
        self._walk = self._walk_over(cuts, reorders)
        self._live = self._find_live_classes()
        if self._expanded_weights() <= weights:
            self._walk, self._live = before, live

    @property
    def layers(self) -> dict[str, tuple[Key, Key]]:
        """Input and output of each layer, by its name."""
        return self._walk.layers

    @property
    def widened(self) -> dict[str, Key]:
        """Output of each module with per-channel tensors, by its name."""
        return self._walk.widened

    @property
    def parameters(self) -> dict[str, fx.Node]:
        """Node of each parameter or buffer with one value a channel that the forward reads, by its name."""
        return self._walk.parameters

    @property
    def attributes(self) -> dict[str, fx.Node]:
        """Node of each attribute that is a width, by its name."""
        return self._walk.attributes

    @property
    def inserted(self) -> dict[Place, Inserted]:
        """Modules of expand_'s own between two operations."""
        return self._walk.places.inserted

    @property
    def readouts(self) -> dict[str, int]:
        """Input features of each real classifier, by the name of its first module."""
        return self._forward.readouts

    def order(self, name: str) -> Tensor:
        """Order of the input of a layer or widened module."""
        return self._walk.orders[name]

    def layout(self, key: Key) -> Layout:
        """Of a tensor with channels."""
        return self._walk.layout(key)

    def is_carried(self, key: Key) -> bool:
        """Whether the tensor is carried at tau*g times its nominal width."""
        return self._walk.classes.root(key) in self._live and self._walk.classes.reason(key) is None

    def plan(self) -> ExpansionPlan:
        """Which layers take the expand-shrink form, and why binary ones do not."""
        expanded, left = [], {}
        covered: set[nn.Module] = set()
        for name, ends in self.layers.items():
            module = self.modules[name]
            covered.update(module.modules())
            reason = self._reason_to_stay(name)
            inside = all(self.is_carried(end) for end in ends)
            if reason is None and inside:
                expanded.append(name)
            elif reason is not None and (isinstance(module, BINARY) or (inside and isinstance(module, REAL_CONVS))):
                left[name] = reason
        for name, module in self.modules.items():
            if isinstance(module, BinaryLayer) and module not in covered:
                left[name] = self._reason_not_seen(name)
        return ExpansionPlan(tuple(expanded), left)

    def _reason_not_seen(self, name: str) -> str:
        """Why a layer is none of the graph's."""
        for outer, error in self._forward.tracer.untraced.items():
            if name.startswith(f"{outer}."):
                return f"it is in {outer}, whose forward cannot be traced by torch.fx ({error}): give an example"
        for node in self._forward.graph.nodes:
            if node.op == "call_module" and node.target == name and node in self._walk.classes:
                return f"its input {self._walk.classes.reason(node)}"
        return "the traced forward does not call it as a module"

    def _walk_over(self, cuts: Mapping[fx.Node, Cut], reorders: bool = False) -> Pass:
        """The last of the walks that give each other the cuts they ask for.

        Args:
            cuts: of the first walk.
            reorders: whether all readers of a tensor may get it in another order because one needs it.
        """
        given, fixed = cuts, set[str]()
        while True:
            walk = Pass(self._forward, self.expansion, cuts, fixed)
            self._unordered |= bool(walk.unordered)
            if reorders and walk.unordered:
                cuts = {**cuts, **walk.unordered}
                continue
            # an attribute that does not fit here or there stays everywhere, and what followed from it is forgotten
            odd = {name for name, node in walk.attributes.items() if walk.classes.reason(node) is not None}
            if odd:
                fixed, cuts = fixed | odd, given
                continue
            if not walk.wanted:
                return walk
            cuts = {**cuts, **walk.wanted}

    def _find_entries(self) -> dict[fx.Node, Cut]:
        """Places after modules whose inside is nominal where a tile can make their output carried."""
        found = {}
        boundaries = self._walk.places.boundaries()
        for node in self._forward.graph.nodes:
            if node.op == "call_module" and node.target in self._forward.tracer.untraced:
                boundaries.setdefault(node, (str(node.target), frozenset()))
        for node, (name, inside) in boundaries.items():
            fact = self._walk.facts.get(node)
            if is_settled(fact) and node not in self._walk.cuts and not set(node.users) <= inside:
                reason = self._walk.classes.reason(node)
                if reason is not None and reason.startswith(CONNECTED):
                    found[node] = Cut(name, "carried", inside)
        return found

    def _expanded_weights(self) -> int:
        """Binary weights of the layers that are expanded."""
        layers = {module for name in self.plan().expanded for module in self.modules[name].modules()}
        return sum(module.weight.numel() for module in layers if isinstance(module, BinaryLayer))

    def _reason_to_stay(self, name: str) -> str | None:
        """Why layer `name` keeps its plain form, or None."""
        obstacle = find_obstacle(self.modules[name], self.expansion)
        if obstacle is not None:
            return obstacle
        for side, key in zip(("input", "output"), self.layers[name], strict=True):
            if (reason := self._walk.classes.reason(key)) is not None:
                return f"its {side} {reason}"
        return None

    def _find_live_classes(self) -> set[Key]:
        """Roots of the classes that are worth carrying.

        Those at the ends of a binary layer that expands, and all that expanding layers connect with them.
        """
        root = self._walk.classes.root
        expanding = {name: ends for name, ends in self.layers.items() if self._reason_to_stay(name) is None}
        pairs = [(name, {root(x), root(y)}) for name, (x, y) in expanding.items()]
        live = {end for name, pair in pairs if isinstance(self.modules[name], BINARY) for end in pair}
        grown = True
        while grown:
            reached = live.union(*(pair for _, pair in pairs if pair & live))
            grown, live = reached != live, reached
        return live
