"""BiDet's SSD300 against records of the original (float64, closed-form weights), its file, and its published cost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError, count
from esbnn_core.checkpoint.official import load_official, to_official
from tests.helpers.detection.ssd300 import detector
from tests.helpers.golden import close, closed_form, fill

ROOT = Path(__file__).parents[3]
RECORDS: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "detection.json").read_text())
LIST = ROOT.parent / "shared" / "spec" / "state-keys" / "bidet_ssd300_state_keys.json"


def by_prior(maps: list[Tensor], values: int) -> Tensor:
    return torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, values) for y in maps], 1)


@pytest.mark.slow
def test_sources_heads_and_priors_are_those_of_the_original() -> None:
    model = fill(detector("bidet"))
    with torch.no_grad():
        sources = model.backbone(closed_form("input", 3 * 300 * 300).view(1, 3, 300, 300))
        scores, codes = model.bbox_head(sources)
    for number, source in enumerate(sources):
        close(source, RECORDS[f"bidet_ssd300/source{number}"])
    close(by_prior(codes, 8), RECORDS["bidet_ssd300/loc"])
    # the original has the background first, mmdet last
    close(by_prior(scores, 21).roll(1, -1), RECORDS["bidet_ssd300/conf"])
    sizes = [tuple(y.shape[-2:]) for y in sources]
    assert sizes == [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    priors = torch.cat(model.bbox_head.prior_generator.grid_priors(sizes, dtype=torch.float64, device="cpu")) / 300
    low, high = priors.split(2, 1)
    close(torch.cat([(low + high) / 2, high - low], 1), RECORDS["bidet_ssd300/priors"])


def test_the_file_of_the_original_is_read_and_written() -> None:
    one, other = detector("bidet"), detector("bidet")
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter)
    official = to_official(one)
    shapes = {key: list(value.shape) for key, value in official.items()}
    assert len(shapes) == 212
    assert shapes["extra_bns.7.running_var"] == [256] and shapes["extras.0.weight"] == [256, 1024, 1, 1]
    assert shapes["loc.1.weight"] == [48, 1024, 3, 3] and shapes["conf.1.bias"] == [126]
    if LIST.is_file():
        assert shapes == json.loads(LIST.read_text())
    other.bbox_head.bottleneck.switch_on()
    report = load_official(other, {"weight": official, "opt": {}})
    assert report.tensors == 212
    state = one.state_dict()
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]) or key == "bbox_head.bottleneck.on"
    assert bool(other.bbox_head.bottleneck.on)  # no file of theirs has it: it stays as it was
    broken = {**official, "extras.0.weight": official["extras.0.weight"][:, :5]}
    with pytest.raises(InputError, match=r"extras\.0"):
        load_official(other, broken)
    broken = {key: value for key, value in official.items() if key != "L2Norm.weight"}
    with pytest.raises(InputError, match=r"looks like BiDet's SSD300.*L2Norm\.weight is missing"):
        load_official(other, broken)


@pytest.mark.parametrize(("name", "options"), [("bidet", {}), ("es_bidet", {}), ("es_bidet", {"tau": 2, "groups": 2})])
def test_the_published_cost(name: str, options: dict[str, int]) -> None:
    """Spec 0.6; expansion leaves it as it is."""
    cost = count(detector(name, **options), (3, 300, 300))
    assert (f"{cost.bops / 1e9:.3f}", f"{cost.flops / 1e8:.3f}") == ("40.489", "26.302")
    assert (f"{cost.ops / 1e8:.2f}", f"{cost.binary_params / 1e6:.3f}") == ("32.63", "27.341")
    assert name == "es_bidet" or f"{cost.params / 1e6:.3f}" == "32.725"
