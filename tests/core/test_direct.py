"""Calls that go past torch's dispatcher: only where nobody would see them, and equal to those that do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from esbnn_core import kernels
from esbnn_core.kernels import operators
from esbnn_core.kernels.call import call_of
from esbnn_core.kernels.direct import unwatched
from tests.helpers import paths
from tests.helpers.operators import conv_arguments


class Own(Tensor):
    """A subclass, as those of torch's own for distributed or quantized tensors."""


class Watching(TorchDispatchMode):
    """Notes the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_call_goes_past_the_dispatcher_only_if_nobody_would_see_it() -> None:
    x = torch.zeros(2, 8, 3, 3)
    wanted = x.clone().requires_grad_()
    assert unwatched(x) and unwatched(x, x)
    assert not unwatched(wanted) and not unwatched(x, wanted)
    assert not unwatched(x.as_subclass(Own)) and not unwatched(x, x.as_subclass(Own))
    assert not unwatched(x.to("meta"))
    with torch.no_grad():
        assert unwatched(wanted)
    with torch.inference_mode():
        assert unwatched(x)
    with torch.device("cpu"):  # a default device is a mode: what is allocated inside would be somewhere else
        assert not unwatched(x)
    with Watching():
        assert not unwatched(x)
    with FakeTensorMode() as mode:
        assert not unwatched(mode.from_tensor(x))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not unwatched(x)
    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(unwatched(x))
        return x + 1

    torch.func.vmap(note)(x)
    torch.func.jvp(note, (x,), (x,))
    torch.jit.trace(note, (x,), check_trace=False)  # type: ignore[no-untyped-call]
    assert seen and not any(seen)


def test_what_watches_sees_the_operator() -> None:
    call = call_of(**conv_arguments("aprqs"))
    with Watching() as mode:
        kernels.binary_conv2d(*call)
    assert "esbnn::binary_conv2d" in mode.seen
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        kernels.binary_conv2d(*call)
    assert "esbnn::binary_conv2d" in [event.name for event in profile.events() or []]


def changed(call: Any, **epilogue: Any) -> Any:
    return call._replace(epilogue=call.epilogue._replace(**epilogue))


def test_calls_that_look_alike_share_a_plan_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def gaps(t: Tensor) -> Tensor:
        """The same numbers with others between them."""
        wide = torch.full((*t.shape, 2), 7.0)
        wide[..., 0] = t
        return wide[..., 0]

    changes: list[Callable[[Any], Any]] = [
        lambda call: call,
        lambda call: changed(call, scale=call.epilogue.scale * 2),
        lambda call: changed(call, scale=gaps(call.epilogue.scale), bias=gaps(call.epilogue.bias)),
        lambda call: changed(call, residual=call.epilogue.residual.contiguous()),
        lambda call: changed(call, residual=call.epilogue.residual.bfloat16()),
        lambda call: changed(call, out_dtype=torch.bfloat16),
        lambda call: changed(call, prelu=None),
        lambda call: call._replace(x=call.x[:1], epilogue=call.epilogue._replace(residual=call.epilogue.residual[:1])),
        lambda call: call._replace(lanes=None),
    ]
    given = call_of(**conv_arguments("aprqs"))
    assert given.epilogue.residual is not None
    given = changed(given, residual=given.epilogue.residual.to(memory_format=torch.channels_last))
    paths.force("naive", monkeypatch)
    operators._known.clear()
    want = [kernels.binary_conv2d(*change(given)) for change in changes]
    names = [name for name in paths.usable() if name != "naive"]
    for name in names:
        with paths.forced(name):
            lanes = kernels.lanes_of(given.weight, given.geometry.groups)
            for change, (y, bits) in [*zip(changes, want, strict=True)] * 2:  # the second time everything is known
                got, signs = kernels.binary_conv2d(*change(given._replace(lanes=lanes)))
                assert got.dtype == y.dtype and torch.equal(got, y) and torch.equal(signs, bits)
                assert got.is_contiguous(memory_format=torch.channels_last)
    plans = [plan for _, plan in operators._known.values() if plan is not None]
    assert [sum(plan.library.name == name for plan in plans) for name in names] == [5] * len(names)
