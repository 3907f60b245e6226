"""VOC annotations: equal to what mmdet reads, and every fault in one sentence that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import read_image_size
from tasks.detection.annotations import read_record, read_split
from tasks.detection.mmdet import api as mm
from tests.helpers.detection.tiny import EMBEDDED

REAL = Path(__file__).parents[4] / "shared" / "data" / "VOCdevkit"
GOOD = "<object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"


@pytest.mark.parametrize(
    ("root", "part"), [(EMBEDDED, "train"), (EMBEDDED, "test"), (REAL, "trainval"), (REAL, "test")]
)
def test_records_are_those_of_mmdet(root: Path, part: str) -> None:
    if not root.is_dir():
        pytest.skip(f"{root} is absent: the real VOC images are not part of the repository")
    ours = read_split(root, f"VOC2007/{part}").records
    with mm.scope():
        theirs = mm.DATASETS.build(
            {
                "type": "VOCDataset",
                "data_root": f"{root}/",
                "ann_file": f"VOC2007/ImageSets/Main/{part}.txt",
                "data_prefix": {"sub_data_root": "VOC2007/"},
                "pipeline": [],
                "test_mode": True,
                "lazy_init": True,
            }
        ).load_data_list()
    assert ours == theirs and len(ours) >= 4
    assert sum(len(record["instances"]) for record in ours) >= len(ours)


def test_difficult_objects_are_flagged() -> None:
    (record,) = [r for r in read_split(EMBEDDED, "VOC2007/train").records if r["img_id"] == "003591"]
    assert [i["ignore_flag"] for i in record["instances"]] == [0, 1]


def write(voc: Path, identity: str, body: str, size: str = "") -> Path:
    path = voc / "VOC2007" / "Annotations" / f"{identity}.xml"
    path.write_text(f"<annotation>{size}{body}</annotation>")
    return path


def box(xmin: object, ymin: object, xmax: object, ymax: object, name: str = "dog") -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda v: write(v, "000521", box(1, 1, 600, 20)),
        r"000521\.xml has a dog whose box \(1, 1, 600, 20\) is outside",
    ),
    (
        lambda v: write(v, "000521", box(-5, 1, 60, 20)),
        r"000521\.xml has a dog whose box \(-5, 1, 60, 20\) is outside",
    ),
    (lambda v: write(v, "000521", box(30, 1, 30, 20)), r"000521\.xml has a dog whose box \(30, 1, 30, 20\) is empty"),
    (
        lambda v: write(v, "000521", box("left", 1, 30, 20)),
        r"xmin in <bndbox> of annotation .*000521\.xml must be a number, got 'left'",
    ),
    (lambda v: write(v, "000521", box("nan", 1, 30, 20)), r"000521\.xml must be a number, got 'nan'"),
    (lambda v: write(v, "000521", box(1, 1, 9, 9, "unicorn")), r"000521\.xml must be among the 20 .*, got 'unicorn'"),
    (lambda v: write(v, "000521", "<object><name>dog</name></object>"), r"000521\.xml has a dog without <bndbox>"),
    (
        lambda v: write(v, "000521", GOOD, "<size><width>50</width><height>40</height></size>"),
        r"000521\.xml must be the .* of image .*000521\.jpg, got 50x40",
    ),
    (lambda v: (v / "VOC2007/Annotations/000521.xml").write_text(""), r"000521\.xml is an empty file"),
    (
        lambda v: (v / "VOC2007/Annotations/000521.xml").write_text("<annotation><obj"),
        r"000521\.xml is not a whole XML",
    ),
    (
        lambda v: (v / "VOC2007/Annotations/000521.xml").write_text("<html/>"),
        r"000521\.xml must begin with <annotation> .*, got <html>",
    ),
    (lambda v: (v / "VOC2007/Annotations/000521.xml").unlink(), r"annotation .*000521\.xml does not exist"),
    (lambda v: (v / "VOC2007/JPEGImages/000521.jpg").unlink(), r"image .*000521\.jpg does not exist"),
    (lambda v: (v / "VOC2007/JPEGImages/000521.jpg").write_bytes(b""), r"000521\.jpg cannot be read as an image"),
    (lambda v: (v / "VOC2007/JPEGImages/000521.jpg").write_bytes(b"no image"), r"000521\.jpg cannot be read as"),
    (
        lambda v: (v / "VOC2007/JPEGImages/000521.jpg").write_bytes(
            (v / "VOC2007/JPEGImages/000521.jpg").read_bytes()[:9000]
        ),
        r"000521\.jpg is cut off",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), FAULTS)
def test_a_fault_is_one_sentence_and_skip_bad_passes_over_it(
    voc: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    whole = read_split(voc, "VOC2007/train")
    assert not whole.skipped
    damage(voc)
    with pytest.raises(InputError, match=sentence) as error:
        read_split(voc, "VOC2007/train")
    assert "\n" not in str(error.value)
    split = read_split(voc, "VOC2007/train", skip_bad=True)
    assert split.skipped == {"000521": str(error.value)}
    assert split.records == [record for record in whole.records if record["img_id"] != "000521"]


def test_an_edge_of_one_pixel_and_an_image_without_objects_are_no_faults(voc: Path) -> None:
    width, height = read_image_size(voc / "VOC2007/JPEGImages/000521.jpg")
    write(voc, "000521", box(0, 0, width + 1, height + 1) + box("1.9", 1, 10, 10))
    boxes = [i["bbox"] for i in read_record(voc / "VOC2007", "000521")["instances"]]
    assert boxes == [[-1, -1, width, height], [0, 0, 9, 9]]
    write(voc, "000521", "")
    assert read_record(voc / "VOC2007", "000521")["instances"] == []


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("VOC2007/none", None, r"image list .*none\.txt does not exist"),
        ("VOC2012/train", None, r"has no folder VOC2012"),
        ("train", None, r"image list must be YEAR/LIST, .*, got 'train'"),
        ("VOC2007/train", "\n", r"train\.txt must have one image id a line, got none"),
        ("VOC2007/train", "000521  1\n", r"train\.txt must have one image id a line, got '000521  1'"),
    ],
)
def test_a_wrong_list_is_one_sentence(voc: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (voc / "VOC2007/ImageSets/Main/train.txt").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_split(voc, name)


def test_a_list_of_bad_images_alone_is_an_error_even_when_they_may_be_skipped(voc: Path) -> None:
    for path in (voc / "VOC2007" / "Annotations").iterdir():
        path.write_text("")
    with pytest.raises(InputError, match="has no image left because all 8 were skipped, the first because annotation"):
        read_split(voc, "VOC2007/train", skip_bad=True)


def test_other_classes(voc: Path) -> None:
    write(voc, "000521", box(1, 1, 9, 9, "unicorn"))
    assert read_record(voc / "VOC2007", "000521", ("griffin", "unicorn"))["instances"][0]["bbox_label"] == 1
