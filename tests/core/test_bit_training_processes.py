"""Training on bits over two processes: DistributedDataParallel, and statistics that they share."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from esbnn_core import bit_training_report, create_model, train_on_bits_
from esbnn_core.layers import Expansion
from esbnn_core.units import BinaryUnit, UnitStyle
from tests.helpers import processes
from tests.helpers.units import randn, relative

BATCHES = (3, 5)
"""Images of each process: not equally many."""


def networks() -> dict[str, nn.Module]:
    """Double networks of which every parameter gets a gradient."""
    torch.manual_seed(0)
    style = UnitStyle(latent_init="kaiming")
    unit = BinaryUnit(8, 8, style=style, expansion=Expansion(2), shortcut=nn.Identity(), inner_act=True).double()
    return {"network": create_model("es_reactnet_resnet8").double().train(), "unit": unit}


def images(name: str) -> list[Tensor]:
    shape = (3, 16, 16) if name == "network" else (16, 5, 5)
    return [2 * randn(number, *shape, seed=number) + 0.3 for number in BATCHES]


def shared(unit: nn.Module) -> nn.Module:
    """The unit with a norm that is normalised over all processes, training on bits."""
    return train_on_bits_(nn.SyncBatchNorm.convert_sync_batchnorm(unit))


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Tensor] = {}
    for name, plain in networks().items():
        x = images(name)[rank]
        for way in ("plain", "bits"):
            # wrapped first: the verb reaches what a wrapper holds
            model = DistributedDataParallel(copy.deepcopy(plain))
            if way == "bits":
                train_on_bits_(model)
                assert set(bit_training_report(model).values()) == {""}
            y = model(x)
            y.square().sum().backward()
            found |= {f"{name} {way} {key}": p.grad for key, p in model.module.named_parameters()}
            found |= {f"{name} {way} {key}": b for key, b in model.module.named_buffers()}
    unit = shared(networks()["unit"])
    x = images("unit")[rank].requires_grad_()
    y = unit(x)
    y.square().sum().backward()
    found |= {"shared y": y.detach(), "shared x": x.grad}
    found |= {f"shared {key}": p.grad for key, p in unit.named_parameters()}
    found |= {f"shared {key}": b for key, b in unit.named_buffers()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_plain_gradients_and_share_statistics(tmp_path: Path) -> None:
    processes.start(worker, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    names = [name for name in first if " bits " in name]
    assert len(names) > 50
    for name in names:
        got, want = first[name], first[name.replace(" bits ", " plain ")]
        if got.is_floating_point():
            assert relative(got, want) <= 1e-9, name
        if name.startswith("unit bits") and not any(key in name for key in ("running", "tracked")):
            assert torch.equal(got, second[name])
    # a norm over all processes is one process with the whole batch, whose gradients add up over the processes
    whole, x = networks()["unit"], torch.cat(images("unit")).requires_grad_()
    y = whole(x)
    y.square().sum().backward()
    assert relative(torch.cat([first["shared y"], second["shared y"]]), y.detach()) <= 1e-12
    assert relative(torch.cat([first["shared x"], second["shared x"]]), x.grad) <= 1e-12
    for key, p in whole.named_parameters():
        assert relative(first[f"shared {key}"] + second[f"shared {key}"], p.grad) <= 1e-10, key
    for key in ("norm.running_mean", "norm.running_var"):
        for found in (first, second):
            assert relative(found[f"shared {key}"], dict(whole.named_buffers())[key]) <= 1e-12
