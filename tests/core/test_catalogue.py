"""The catalogue of checkpoints: its strict schema, and the entries that the repository has."""

import copy
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import InputError, create_model, model_spec, read_checkpoint
from esbnn_core.checkpoint.catalogue import CATALOGUE, FOLDER, Entry, read_catalogue
from esbnn_core.checkpoint.official_keys import KEY_MAPS
from esbnn_core.lit.recipes import read_recipe
from tests.helpers.catalogue import GIVEN, LINKED, write

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "configs" / "tables" / "published.csv"
TERMS = {
    **{"imagenet": "ImageNet-1k", "cifar10": "CIFAR-10", "VOC2007": "VOC07 test", "Manga109": "Manga109"},
    **{"top1": "top1", "map_11point": "mAP", "psnr": "PSNR_dB"},
}
"""How the published tables call our datasets and metrics."""


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", GIVEN, {**GIVEN, **LINKED, "name": "other", "value": None})
    catalogue = read_catalogue(path)
    first, second = catalogue
    assert first == Entry(**GIVEN) and isinstance(first.value, float) and catalogue.folder == tmp_path
    assert json.loads(first.json()) == GIVEN and catalogue.find("other") is second and second.value is None
    lines = catalogue.table().splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "es_tiny classification fashion_mnist/test top1 87 checkpoints/es_tiny.safetensors 0a0a0a0a0a0a",
        "other classification fashion_mnist/test top1 - fetched not known",
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": "red"}, "has the key 'colour', the keys are name, task"),
        ({"sha256": None}, "sha256 must be str, got None"),
        ({"bytes": "12"}, "bytes must be int or null, got '12'"),
        ({"bytes": 0}, "bytes must be 1 or more, got 0"),
        ({"bytes": True}, "bytes must be int or null, got True"),
        ({"value": "87"}, "value must be int or float or null, got '87'"),
        *[
            ({"value": float(word)}, f"value must be a finite number or null, got {word}")
            for word in ("NaN", "Infinity", "-Infinity")
        ],
        ({"value": -(10**400)}, "value must be a finite number or null, got -Infinity"),
        ({"tolerance": -1}, "tolerance must be a finite number from 0, got -1"),
        ({"tolerance": float("nan")}, "tolerance must be a finite number from 0, got nan"),
        ({"tolerance": 10**400}, "tolerance must be a finite number from 0, got inf"),
        ({"options": []}, r"options must be dict, got []"),
        ({"name": "Es tiny"}, "name must be small letters, digits, _ and -, got 'Es tiny'"),
        (
            {"task": "segmentation"},
            "task must be one of classification, detection, super_resolution, got 'segmentation'",
        ),
        ({"container": "zip"}, "container must be one of safetensors, pytorch, got 'zip'"),
        ({"url": "https://host/x"}, "exactly one of file and url must be given"),
        ({"file": None}, "exactly one of file and url must be given"),
        ({"access": "direct"}, "access must be 'file' with a file and 'direct' or 'page' with a url, got 'direct'"),
        (
            {**LINKED, "access": "file"},
            "access must be 'file' with a file and 'direct' or 'page' with a url, got 'file'",
        ),
        ({**LINKED, "access": "mail"}, "access must be one of file, direct, page, got 'mail'"),
        (
            {**LINKED, "url": "ftp://host/x"},
            "url must be an address that begins with http:// or https://, got 'ftp://host/x'",
        ),
        ({"file": "../secret"}, "file must be a path below checkpoints/, got '../secret'"),
        ({"file": "/etc/passwd"}, "file must be a path below checkpoints/, got '/etc/passwd'"),
        ({"sha256": "0A" * 32}, "64 small hexadecimal digits"),
        ({"sha256": "0a" * 31}, "64 small hexadecimal digits"),
        ({"sha256": ""}, "sha256 and bytes must be given with a file"),
        ({"bytes": None}, "sha256 and bytes must be given with a file"),
        ({"metric": ""}, "metric must name what was measured, got '' with value 87"),
        ({"dataset": ""}, "dataset must name what top1 was measured on, got ''"),
    ],
)
def test_a_wrong_entry_is_one_sentence_with_entry_and_key(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / "m.json", {**GIVEN, "name": "right"}, {**GIVEN, **change})
    with pytest.raises(InputError) as caught:
        read_catalogue(path)
    message = str(caught.value)
    assert message.startswith(f"catalogue {path}, entry 2 ({change.get('name', 'es_tiny')})") and sentence in message
    assert "\n" not in message


@pytest.mark.parametrize("key", list(GIVEN))
def test_no_key_may_be_missing(tmp_path: Path, key: str) -> None:
    entry = {name: value for name, value in GIVEN.items() if name != key}
    with pytest.raises(InputError, match=f"entry 1.* has no key '{key}': add it"):
        read_catalogue(write(tmp_path / "m.json", entry))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as json"),
        ("[]", "got another form"),
        ('{"checkpoints": {}}', "got another form"),
        ('{"checkpoints": [], "more": 1}', "got another form"),
        ('{"checkpoints": ["es"]}', "entry 1 must be a json object, got str"),
        ('{"checkpoints": [], "checkpoints": []}', "m.json has the key 'checkpoints' in one object twice: take one"),
        ('{"checkpoints": [{"bytes": 1, "bytes": 1, "name": "es"}]}', "m.json has the key 'bytes' of 'es' twice: take"),
        ('{"checkpoints": [{"options": {"tau": 2, "tau": 3}}]}', "m.json has the key 'tau' in one object twice: take"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_catalogue(tmp_path / "m.json")
    with pytest.raises(InputError, match="does not exist"):
        read_catalogue(tmp_path / "gone.json")


def test_names_are_unique_and_the_nearest_are_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the name es_tiny twice: rename one"):
        read_catalogue(write(tmp_path / "m.json", GIVEN, copy.deepcopy(GIVEN)))
    catalogue = read_catalogue()
    with pytest.raises(InputError, match=r"'es_bnext_tny' is neither .* nearest: es_bnext_tiny, bnext_tiny"):
        catalogue.find("es_bnext_tny")
    with pytest.raises(InputError, match="--list shows all names"):
        catalogue.find("qqqqq")


REAL = list(read_catalogue())


def test_every_file_that_the_originals_release_is_there() -> None:
    drive, folders = "https://drive.google.com/file/d/", "https://drive.google.com/drive/folders/"
    assert {entry.name: entry.url for entry in REAL if not entry.ours} == {
        "es_bnext_tiny": "https://pan.seu.edu.cn:443/link/F084D724533B054E64ED1FE9B8CC1459",
        "bnext_tiny": f"{drive}1CJ0XOEhoHuNe-tDYJaAOd1j4YyNXuyas/view",
        "bnext_small": f"{drive}1NcVM5Qb1K9Oq_sjEA1lGtp7kVbsfTLsa/view",
        "bnext_middle": f"{drive}1xyKnA6SsG4ZpguNQQrB6Yz-J5dzXYfKE/view",
        "bnext_large": f"{drive}1XGKcX2Zl_fIU9wPBDjTTxstOBfwQH8xc/view",
        "rep_adambnn_reactnet_a": "https://pan.seu.edu.cn:443/link/368195B6FFEAFC35C804A08CAF457D65",
        "reactnet_resnet18": "https://github.com/liuzechun/ReActNet",
        "reactnet_a": "https://github.com/liuzechun/ReActNet",
        "adambnn_reactnet_a": "https://github.com/liuzechun/AdamBNN",
        **dict.fromkeys(
            ("recu_resnet20_cifar10", "recu_resnet18_cifar10", "recu_vgg_small_cifar10", "recu_resnet18"),
            "https://github.com/z-hXu/ReCU",
        ),
        **dict.fromkeys(("recu_resnet34", "recu_resnet18_two_stage"), "https://github.com/z-hXu/ReCU"),
        "bidet_ssd300": f"{drive}1mURBX-EtoFanp-8wP6-n3u0E6Mq3enkv/view",
        "bidet_vgg16": f"{drive}1K0hJasYqeUnz82FcB2XnCca8vzsLQcBv/view",
        "bidet_resnet18": f"{drive}1SB5oPbGX-MBwjv0QHBbgVRKVpb-3VY00/view",
        "bi_diffsr_x2": f"{folders}1hoHAG2yoLltloQ0SYv-QLxwk9Y8ZnTnH",
        "bi_diffsr_x4": f"{folders}1hoHAG2yoLltloQ0SYv-QLxwk9Y8ZnTnH",
    }


@pytest.mark.parametrize("entry", REAL, ids=lambda entry: entry.name)
def test_an_entry_names_what_exists(entry: Entry) -> None:
    if entry.config:
        recipe = read_recipe(ROOT / entry.config)
        assert "model" in recipe and "data" in recipe and (entry.ours or Path(entry.config).parent.name == entry.task)
    if entry.task != "classification":
        assert entry.config and entry.metric
    elif entry.network:
        with torch.device("meta"):
            model = create_model(entry.network, **entry.options)
        if entry.keys:
            assert KEY_MAPS[entry.keys].fits(model)
        if entry.config and "network" in recipe["model"]:
            # the recipe of a file trains the very network of the file, or the classifier over it
            spec = model_spec(model)
            assert spec is not None and recipe["model"]["network"] in (spec.name, f"{spec.name}_classifier")
    else:
        assert not entry.keys and "has no" in entry.note


CELLS = {
    "es_bnext_tiny": ("ES-BNext-T", "tau=2 g=1"),
    **{f"bnext_{size}": (f"BNext-{size[0].upper()}", "") for size in ("tiny", "small", "middle", "large")},
    "rep_adambnn_reactnet_a": ("Rep_AdamBNN", "ReActNet-A beta=2"),
    "reactnet_resnet18": ("ReActNet", "Bi-Real ResNet-18"),
    "reactnet_a": ("ReActNet-A", "MobileNetV1-like"),
    "adambnn_reactnet_a": ("AdamBNN", "ReActNet-A"),
    **{f"recu_{net}_cifar10": ("ReCU", f"ResNet-{net[6:]} vanilla") for net in ("resnet20", "resnet18")},
    "recu_vgg_small_cifar10": ("ReCU", "VGG-small vanilla"),
    **{f"recu_resnet{depth}": ("ReCU", f"ResNet-{depth} vanilla") for depth in (18, 34)},
    "recu_resnet18_two_stage": ("ReCU", "ReActNet-like ResNet-18 (two-stage)"),
    "bidet_ssd300": ("BiDet", "SSD300-VGG16 (SC)"),
    **{f"bi_diffsr_x{scale}": ("BI-DiffSR", f"x{scale}") for scale in (2, 4)},
}
"""Method and variant of published.csv that an entry's value is of."""


@pytest.mark.parametrize("entry", [e for e in REAL if not e.ours and e.value is not None], ids=lambda entry: entry.name)
def test_values_are_the_published_ones(entry: Entry) -> None:
    with open(PUBLISHED, newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["value"]]
    place = (*CELLS[entry.name], TERMS[entry.dataset], TERMS[entry.metric], entry.source)
    keys = ("method", "variant", "dataset", "metric", "source")
    found = [float(row["value"]) for row in cells if tuple(row[key] for key in keys) == place]
    assert found == [entry.value], place


def test_our_own_files_are_what_the_catalogue_says() -> None:
    own = {entry.file: entry for entry in REAL if entry.file is not None}
    there = {str(path.relative_to(FOLDER)) for path in CATALOGUE.parent.rglob("*.safetensors")}
    assert there == set(own)
    for name, entry in own.items():
        data = (FOLDER / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
        if entry.task == "classification":
            metadata = read_checkpoint(FOLDER / name)
            assert (metadata.network, entry.ours) == (entry.network, True)
            assert {key: metadata.options[key] for key in entry.options} == entry.options
