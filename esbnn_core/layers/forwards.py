"""What a module loses when another computes in its place: a forward that is not its class's, and hooks."""

from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps its own."""


def runs_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the module's forward is that of one of `kinds`.

    A subclass with a forward of its own, such as timm's BatchNormAct2d of nn.BatchNorm2d, is not, nor is a module whose
    attribute `forward` was set. Hooks are another matter (has_hooks).
    """
    own = "forward" in vars(module)
    return not own and any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def kind_of(module: nn.Module) -> str:
    """The module's class for a message, and whether the module has a forward that is not its class's."""
    return f"{type(module).__name__}{' with a forward of its own' if 'forward' in vars(module) else ''}"


def has_hooks(module: nn.Module) -> bool:
    """Whether the module itself has a hook of any kind."""
    return any(getattr(module, kind) for kind in HOOKS)
