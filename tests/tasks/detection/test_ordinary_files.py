"""Images and annotations as people have them: turned by EXIF, any ending and encoding, equal names in two folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from esbnn_core.errors import InputError
from tasks.detection.annotations import find_image, read_record, read_split
from tasks.detection.data import VOCDataModule
from tasks.detection.drawing import write_drawing
from tasks.detection.scoring import ImageResult, score
from tests.helpers.detection.tiny import EMBEDDED
from tests.helpers.log import Log

MakeVoc = Callable[..., VOCDataModule]
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc(root: Path, years: tuple[str, ...] = ("VOC2007",)) -> Path:
    for year in years:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / year / part).mkdir(parents=True)
    return root


def place(
    root: Path, identity: str, image: Image.Image, box: tuple[int, ...], year: str = "VOC2007", **save: Any
) -> Path:
    path = root / year / "JPEGImages" / f"{identity}.jpg"
    image.save(path, **save)
    text = f"<annotation><object><name>dog</name>{BOX.format(*box)}</object></annotation>"
    (root / year / "Annotations" / f"{identity}.xml").write_text(text)
    return path


def listed(root: Path, *identities: str, year: str = "VOC2007", part: str = "test") -> None:
    (root / year / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(identities) + "\n")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_one_orientation_for_size_pixels_boxes_and_drawing(tmp_path: Path, make_voc: MakeVoc, orientation: int) -> None:
    """A white rectangle, as it is seen, is where its box is."""
    seen = Image.new("RGB", (48, 32))
    seen.paste((255, 255, 255), (30, 4, 44, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # what the camera stores is what turning by the entry makes into the image as it is seen
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = seen if undo is None else seen.transpose(Image.Transpose(undo))
    root = voc(tmp_path)
    path = place(root, "turned", stored, (31, 5, 44, 12), quality=100, exif=exif)
    with Image.open(path) as image:
        assert np.abs(np.asarray(ImageOps.exif_transpose(image)).astype(int) - np.asarray(seen)).mean() < 3
    listed(root, "turned")
    data = make_voc(root=str(root), test=["VOC2007/test"])
    data.setup("test")
    (batch,) = data.test_dataloader()
    sample, pixels = batch["data_samples"][0], batch["inputs"][0].float().mean(0)
    assert sample.metainfo["ori_shape"] == (32, 48)
    scale = torch.tensor([pixels.shape[1] / 48, pixels.shape[0] / 32] * 2)
    x1, y1, x2, y2 = (sample.gt_instances.bboxes.tensor[0] * scale).round().int().tolist()
    inside = torch.zeros_like(pixels, dtype=torch.bool)
    inside[y1 : y2 + 1, x1 : x2 + 1] = True
    assert pixels[inside].mean() > 200 and pixels[~inside].mean() < 20
    none = np.zeros((0, 4), np.float32), np.zeros(0, int)
    found = ImageResult("turned", 32, 48, *none, *none, *none, np.zeros(0, np.float32))
    write_drawing(path, tmp_path / "drawn.png", found, ["dog"], 0.3)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (48, 32) and np.asarray(drawn)[5:11, 32:42].mean() > 200


def test_a_box_outside_the_turned_image_is_refused(tmp_path: Path) -> None:
    root, exif = voc(tmp_path), Image.Exif()
    exif[0x0112] = 6
    place(root, "turned", Image.new("RGB", (48, 32)), (1, 1, 48, 20), exif=exif)
    with pytest.raises(InputError, match=r"a dog whose box \(1, 1, 48, 20\) is outside the image of 32x48"):
        read_record(root / "VOC2007", "turned", ["dog"])


def test_images_of_two_folders_with_one_name_are_two(tmp_path: Path, make_voc: MakeVoc) -> None:
    years = ("A", "B")
    root = voc(tmp_path, years)
    for year, box in zip(years, ((1, 1, 20, 20), (10, 10, 40, 30)), strict=True):
        place(root, "000001", Image.new("RGB", (48, 32)), box, year)
        listed(root, "000001", year=year)
    data = make_voc(root=str(root), classes=["dog"], test=["A/test", "B/test"])
    data.setup("test")
    samples = [sample for batch in data.test_dataloader() for sample in batch["data_samples"]]
    assert [sample.metainfo["img_id"] for sample in samples] == ["A/000001", "B/000001"]
    none = np.zeros((0, 4), np.float32), np.zeros(0, int)
    perfect = []
    for sample in samples:
        truth = sample.gt_instances.bboxes.tensor.numpy(), sample.gt_instances.labels.numpy()
        ones = np.ones(len(truth[1]), np.float32)
        perfect.append(ImageResult(sample.metainfo["img_id"], 32, 48, *truth, *none, *truth, ones))
    scores = score(perfect, ["dog"])
    assert scores.map_area == scores.map_11point == 100 and scores.coco == pytest.approx(100)
    with pytest.raises(InputError, match=r"data\.test must name every image once, got A/000001"):
        make_voc(root=str(root), classes=["dog"], test=["A/test", "B/test", "A/test"]).setup("test")


@pytest.mark.parametrize("encoding", ["utf-8", "gb2312", "utf-16", "latin-1", "shift_jis"])
def test_annotations_in_the_encoding_that_they_declare(tmp_path: Path, encoding: str) -> None:
    root = voc(tmp_path)
    place(root, "a", Image.new("RGB", (48, 32)), (1, 1, 20, 20))
    name = {"latin-1": "Hündin", "shift_jis": "犬"}.get(encoding, "狗")
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n'
    text = f"{head}<annotation><object><name>{name}</name>{BOX}</object></annotation>"
    (root / "VOC2007/Annotations/a.xml").write_bytes(text.format(1, 1, 20, 20).encode(encoding))
    (instance,) = read_record(root / "VOC2007", "a", ["dog", name])["instances"]
    assert instance["bbox_label"] == 1 and instance["bbox"] == [0, 0, 19, 19]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "klingon"),
        (b'<?xml version="1.0" encoding="gb2312"?><annotation>' + b"\xff\xff\xff</annotation>", "gb2312"),
        (b"\xff\xff\xff<annotation/>", "not well-formed"),
    ],
)
def test_an_encoding_that_cannot_be_read_names_the_file(tmp_path: Path, data: bytes, says: str) -> None:
    root = voc(tmp_path)
    for identity in ("a", "b"):
        place(root, identity, Image.new("RGB", (48, 32)), (1, 1, 20, 20))
    (root / "VOC2007/Annotations/a.xml").write_bytes(data)
    listed(root, "a", "b")
    with pytest.raises(InputError, match=rf"annotation .*a\.xml .*{says}"):
        read_split(root, "VOC2007/test", ["dog"])
    split = read_split(root, "VOC2007/test", ["dog"], skip_bad=True)
    assert [record["img_id"] for record in split.records] == ["b"] and list(split.skipped) == ["a"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_lists_with_byte_order_marks_and_names_with_blanks(tmp_path: Path, encoding: str) -> None:
    root = voc(tmp_path)
    for identity in ("my dog 1", "größe"):
        place(root, identity, Image.new("RGB", (48, 32)), (1, 1, 20, 20))
    (root / "VOC2007/ImageSets/Main/test.txt").write_bytes("my dog 1\r\ngröße \n\n".encode(encoding))
    split = read_split(root, "VOC2007/test", ["dog"])
    assert [record["img_id"] for record in split.records] == ["my dog 1", "größe"]
    (root / "VOC2007/ImageSets/Main/test.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"image list .*test\.txt must be text in UTF-8"):
        read_split(root, "VOC2007/test", ["dog"])
    listed(root, "my dog 1")  # every name ends as a line of the lists of one class does, and is an image all the same
    assert [record["img_id"] for record in read_split(root, "VOC2007/test", ["dog"]).records] == ["my dog 1"]
    listed(root, "my dog -1", "größe  1")
    with pytest.raises(InputError, match="must have one image id a line, got 'my dog -1'"):
        read_split(root, "VOC2007/test", ["dog"])
    with pytest.raises(InputError, match="image list must be YEAR/LIST"):
        read_split(root, "VOC2007/.test", ["dog"])


def test_objects_of_other_classes_are_left_out_and_counted(tmp_path: Path, make_voc: MakeVoc, caplog: Log) -> None:
    whole = read_split(EMBEDDED, "VOC2007/train")
    with pytest.raises(InputError, match=r"leave such objects out with data\.drop_other_classes"):
        read_split(EMBEDDED, "VOC2007/train", ["person"])
    some = read_split(EMBEDDED, "VOC2007/train", ["person"], drop_other_classes=True)
    assert [r["img_id"] for r in some.records] == [r["img_id"] for r in whole.records] and not some.skipped
    label = 14  # of person among VOC's 20
    want = [[i["bbox"] for i in r["instances"] if i["bbox_label"] == label] for r in whole.records]
    assert [[i["bbox"] for i in r["instances"]] for r in some.records] == want
    assert some.other_objects.total() == sum(len(r["instances"]) for r in whole.records) - sum(map(len, want)) > 0
    data = make_voc(classes=["person"], drop_other_classes=True, drop_empty=True)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert f"{some.other_objects.total()} objects of other classes left out" in caplog.text
    assert len(data.splits["train"]) == sum(bool(boxes) for boxes in want) > 0


ENDINGS = {
    "a.jpg": "JPEG",
    "b.webp": "WEBP",
    "c.bmp": "BMP",
    "d.Jpg": "JPEG",
    "e.tif": "TIFF",
    "f.jpeg": "JPEG",
    "g.PNG": "PNG",
}


def test_predict_takes_every_ending_and_names_the_rest(tmp_path: Path, make_voc: MakeVoc, caplog: Log) -> None:
    for name, kind in ENDINGS.items():
        Image.new("RGB", (48, 32)).save(tmp_path / name, format=kind)
    for name in ("notes.txt", ".a.jpg", "._b.webp"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    data = make_voc(predict=str(tmp_path))
    with caplog.at_level("INFO"):
        data.setup("predict")
    samples = [sample for batch in data.predict_dataloader() for sample in batch["data_samples"]]
    assert [sample.metainfo["img_id"] for sample in samples] == [Path(name).stem for name in ENDINGS]
    assert "1 file is not an image, left out: notes.txt" in caplog.text


def test_an_image_is_found_beside_its_annotation_whatever_its_ending(tmp_path: Path) -> None:
    for name in ("a.webp", "b.Tiff", "c.x.bmp", "[d].gif"):
        (tmp_path / name).touch()
    assert [find_image(tmp_path, i).name for i in ("a", "b", "c.x", "[d]")] == [
        "a.webp",
        "b.Tiff",
        "c.x.bmp",
        "[d].gif",
    ]
    with pytest.raises(InputError, match="does not exist"):
        find_image(tmp_path, "c")


@pytest.mark.parametrize("kind", ["png", "pgm", "tif"])
def test_white_is_white_in_16_bits(tmp_path: Path, make_voc: MakeVoc, kind: str) -> None:
    levels = np.array([0, 257, 32768, 65535], np.uint16).repeat(8)
    Image.fromarray(np.tile(levels, (16, 1))).save(tmp_path / f"grey.{kind}")
    data = make_voc(predict=str(tmp_path))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    seen = batch["inputs"][0].float().mean((0, 1))
    parts = seen.view(4, -1)[:, seen.numel() // 16].tolist()
    assert parts == pytest.approx([0, 1, 128, 255], abs=1.5)
    none = np.zeros((0, 4), np.float32), np.zeros(0, int)
    found = ImageResult("grey", 16, 32, *none, *none, *none, np.zeros(0, np.float32))
    write_drawing(tmp_path / f"grey.{kind}", tmp_path / "out" / "drawn.png", found, ["dog"], 0.3)
    with Image.open(tmp_path / "out" / "drawn.png") as drawn:
        assert np.asarray(drawn)[0, ::8, 0].tolist() == [0, 1, 128, 255]
    shutil.rmtree(tmp_path / "out")
