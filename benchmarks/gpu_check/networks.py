"""Stage 4: do whole packed networks agree with the latent ones on the device, and how fast are they in CUDA graphs?

Outputs are compared first: packed against latent in float32 in every bit (the same real layers on the same device),
then, for information, packed bfloat16 by its predictions and the CPU's latent network by its logits: real layers round
differently there, and a sign may turn. Then a graph of one forward of each is timed against torch's own bfloat16 in
channels_last, in turns.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.task import OutOfTime, Task, last_line
from benchmarks.speed.graphs import captured, time_in_turns
from benchmarks.speed.parts import warmed
from esbnn_core import create_model, pack_

NAMES = ("reactnet_resnet18", "es_reactnet_resnet18", "bnext_tiny", "es_bnext_tiny")
BATCHES = (1, 256, 8)
"""The two ends first."""


def prepare(task: Task, name: str, size: int) -> dict[str, nn.Module]:
    """The network in four forms on the device, channels_last, in evaluation, with statistics of random images."""
    torch.manual_seed(0)
    options = {"num_classes": 10} if size < 64 else {}
    network = create_model(name, **options).to(task.device, memory_format=torch.channels_last)
    latent = warmed(network, images(size, 8, task.device))
    packed = pack_(copy.deepcopy(latent).cpu()).to(task.device)
    here: list[nn.Module] = []
    # packed where it runs, its affines are folded as the latent network folds them there, in every bit
    task.attempt(f"{name}, packed on the device", lambda: here.append(pack_(copy.deepcopy(latent))))
    if here:
        compare_packings(task, name, packed, here[0])
        packed = here[0]
    return {
        "packed fp32": packed,
        "packed bf16": copy.deepcopy(packed).bfloat16(),
        "torch fp32": latent,
        "torch bf16": copy.deepcopy(latent).bfloat16(),
    }


def compare_packings(task: Task, name: str, there: nn.Module, here: nn.Module) -> None:
    """A network packed on the CPU and moved, against one packed on the device: bits equal, affines within rounding."""
    pairs = {key: (value, here.state_dict()[key]) for key, value in there.state_dict().items()}
    words = [key for key, (a, b) in pairs.items() if not a.is_floating_point() and not torch.equal(a, b)]
    away = [
        ((a - b).abs().max() / a.abs().max()).item() for a, b in pairs.values() if a.is_floating_point() and a.any()
    ]
    task.row("packings", {"network": name, "tensors": len(pairs), "largest relative difference": max(away)})
    if words:
        task.fault(f"{name}: packed on the device, {len(words)} tensors of bits differ, first {words[0]}")


def images(size: int, batch: int, device: str) -> Tensor:
    """Random images, channels_last."""
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.to(device, memory_format=torch.channels_last)


def call(forms: dict[str, nn.Module], name: str, x: Tensor) -> Tensor:
    """Logits of one form, float32."""
    out: Tensor = forms[name](x.bfloat16() if name.endswith("bf16") else x)
    return out.float()


def agreement(task: Task, name: str, forms: dict[str, nn.Module], size: int) -> None:
    """Compare the outputs of the forms; differences are faults."""
    x = images(size, 2 if task.rehearse else 64, task.device)
    logits = {form: call(forms, form, x) for form in forms}
    want = logits["torch fp32"]
    row: dict[str, Any] = {"network": name, "images": len(x), "packed equal": torch.equal(logits["packed fp32"], want)}
    row["largest relative difference"] = ((logits["packed fp32"] - want).abs().max() / want.abs().max()).item()
    for form in ("packed bf16", "torch bf16"):
        row[f"same predictions, {form}"] = (logits[form].argmax(1) == want.argmax(1)).float().mean().item()
    host = copy.deepcopy(forms["torch fp32"]).cpu()(x[:4].cpu())
    row["median difference from the CPU"] = ((host - want[:4].cpu()).abs().median() / host.abs().max()).item()
    task.row("agreement", row)
    if not row["packed equal"]:
        task.fault(f"{name}: packed logits differ from the latent ones by {row['largest relative difference']:.1e}")
    if not want.isfinite().all() or want.std() == 0:
        task.fault(f"{name}: logits are constant or not finite")


def timing(task: Task, name: str, forms: dict[str, nn.Module], size: int, batch: int) -> None:
    """One row of times; a form that cannot be captured is left out and named."""
    x = images(size, batch, task.device)
    replays: dict[str, Callable[[], None]] = {}
    row: dict[str, Any] = {"network": name, "batch": batch, "not captured": {}}
    for form in forms:
        inputs = x.bfloat16() if form.endswith("bf16") else x
        model = forms[form]
        try:
            replays[form] = captured(lambda _, model=model, inputs=inputs: model(inputs), 1, task.device)
        except RuntimeError as error:
            row["not captured"][form] = last_line(error)
    if "packed bf16" not in replays:
        raise RuntimeError(f"packed bf16 cannot be captured: {row['not captured']['packed bf16']}")
    if not task.rehearse:
        row["replay equal"] = replay_is_equal(forms["packed bf16"], x)
        if not row["replay equal"]:
            task.fault(f"{name}, batch {batch}: a CUDA graph gives other logits than the calls that it was made of")
    row["us"] = time_in_turns(replays, 1, 3 if task.rehearse else 7, task.device)
    row["over packed bf16"] = {
        form: round(times["median"] / row["us"]["packed bf16"]["median"], 2) for form, times in row["us"].items()
    }
    row["images a second"] = {form: round(batch / times["median"] * 1e6) for form, times in row["us"].items()}
    task.row("times", row)


def replay_is_equal(model: nn.Module, x: Tensor) -> bool:
    """Whether a graph of the model gives the calls' logits, for other images than those it was captured with."""
    static = torch.zeros_like(x, dtype=torch.bfloat16)
    model(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(static)
    static.copy_(x)
    graph.replay()
    return torch.equal(out, model(static))


@torch.inference_mode()
def run(task: Task) -> None:
    """The stage."""
    names, batches, size = (
        (("reactnet_resnet8", "es_bnext_micro"), (1, 2), 32) if task.rehearse else (NAMES, BATCHES, 224)
    )
    made: dict[str, dict[str, nn.Module]] = {}
    for name in names:

        def compare(name: str = name) -> None:
            made[name] = prepare(task, name, size)
            agreement(task, name, made[name], size)

        task.attempt(name, compare)
    for batch in batches:
        for name, forms in made.items():
            if task.left() < 8:
                raise OutOfTime(
                    f"time for {len(task.record.get('times', []))} of {len(batches) * len(names)} rows of times"
                )
            task.attempt(f"{name}, batch {batch}", partial(timing, task, name, forms, size, batch))
    rows = [row for row in task.record.get("times", []) if "torch bf16" in row["over packed bf16"]]
    ratios = [row["over packed bf16"]["torch bf16"] for row in rows]
    equal = sum(row["packed equal"] for row in task.record.get("agreement", []))
    between = f"{min(ratios)} to {max(ratios)} times as fast as torch bf16" if ratios else "nothing was timed"
    print(f"{equal} of {len(names)} packed networks give the latent logits in every bit; packed bf16 is {between}")
