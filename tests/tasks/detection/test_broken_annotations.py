"""Annotations and image lists of every odd and broken kind: the right boxes, or one sentence that names the file."""

from pathlib import Path

import pytest
from PIL import Image

from esbnn_core.errors import InputError
from tasks.detection.annotations import read_split

SIZE = "<size><width>64</width><height>48</height></size>"
DOG = "<name>dog</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
PLAIN = f"<annotation>{SIZE}<object>{DOG}</object></annotation>"
BOX = [4, 5, 29, 39]
DECLARED = '<?xml version="1.0" encoding="{}"?>'


def changed(*pairs: tuple[str, str]) -> bytes:
    text = PLAIN
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text.encode()


GOOD: dict[str, tuple[bytes, list[list[int]]]] = {  # name: (file, boxes)
    "plain": (PLAIN.encode(), [BOX]),
    "no size": (changed((SIZE, "")), [BOX]),
    "size as decimals": (changed(("<width>64", "<width> 64.0")), [BOX]),
    "decimals": (changed(("<xmin>5", "<xmin>5.7"), ("<xmax>30", "<xmax>3e1")), [BOX]),
    "counted from 0": (changed(("<xmin>5", "<xmin>0")), [[-1, 5, 29, 39]]),
    "the edge after the last pixel": (changed(("<xmax>30", "<xmax>65")), [[4, 5, 64, 39]]),
    "no object": (changed((f"<object>{DOG}</object>", "")), []),
    "an object twice": (changed(("</annotation>", f"<object>{DOG}</object></annotation>")), [BOX, BOX]),
    "blanks in a name": (changed(("dog", " dog\n")), [BOX]),
    "truncated is no number": (changed(("<name>", "<truncated>Unspecified</truncated><name>")), [BOX]),
    "another image's name": (changed((SIZE, f"<filename>b.png</filename>{SIZE}")), [BOX]),
    "parts": (changed(("<name>", "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><name>")), [BOX]),
    "Windows": (b"\xef\xbb\xbf" + changed(("><", ">\r\n<")), [BOX]),
    "UTF-16": (PLAIN.encode("utf-16"), [BOX]),
    "Latin-1": (
        (DECLARED.format("latin-1") + PLAIN.replace("<size>", "<folder>ü</folder><size>")).encode("latin-1"),
        [BOX],
    ),
    "a mark and another declaration": ((DECLARED.format("gb2312") + PLAIN).encode("utf-8-sig"), [BOX]),
}
BAD: dict[str, tuple[bytes, str]] = {  # name: (file, what is said)
    "empty": (b"", "is an empty file"),
    "cut": (PLAIN.encode()[:90], "is not a whole XML file"),
    "json": (b"{}", "is not a whole XML file"),
    "a page": (b"<html/>", "must begin with <annotation>"),
    "two": (PLAIN.encode() * 2, "is not a whole XML file"),
    "unknown encoding": ((DECLARED.format("klingon") + PLAIN).encode(), "unknown encoding: klingon"),
    "no text encoding": ((DECLARED.format("hex") + PLAIN).encode(), "is not a whole XML file"),
    "an outside entity": (
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + changed(("dog", "&e;")),
        "undefined entity",
    ),
    "deep": (b"<a>" * 100_000, "is not a whole XML file"),
    "size of nothing": (changed(("<width>64", "<width>0")), "must be the 64x48 pixels"),
    "size turned": (changed(("<width>64", "<width>48"), ("<height>48", "<height>64")), "must be the 64x48 pixels"),
    "nan": (changed(("<xmin>5", "<xmin>nan")), "xmin in <bndbox> .* must be a number, got 'nan'"),
    "infinite": (changed(("<xmax>30", "<xmax>inf")), "xmax in <bndbox> .* must be a number, got 'inf'"),
    "a decimal comma": (changed(("<xmin>5", "<xmin>5,7")), "must be a number, got '5,7'"),
    "a number of Python": (changed(("<xmin>5", "<xmin>1_0")), "must be a number, got '1_0'"),
    "negative": (changed(("<xmin>5", "<xmin>-5")), "is outside the image"),
    "outside": (changed(("<xmax>30", "<xmax>66")), "is outside the image"),
    "swapped": (changed(("<xmin>5", "<xmin>31")), r"box \(31, 6, 30, 40\) is empty"),
    "zero area": (changed(("<xmin>5", "<xmin>30")), "is empty"),
    "no corner": (changed(("<xmax>30</xmax>", "")), "must be a number, got None"),
    "no box": (changed(("bndbox", "box")), "without <bndbox>"),
    "no name": (changed(("<name>dog</name>", "")), "classes of annotation"),
    "a label as a number": (changed(("dog", "11")), "classes of annotation .* got '11'"),
    "objects in a group": (
        changed(("<object>", "<objects><object>"), ("</object>", "</object></objects>")),
        "directly",
    ),
    "difficult is no number": (changed(("<name>", "<difficult>no</difficult><name>")), "difficult in <object>"),
}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOCdevkit with one image a.png of 64x48 pixels, its annotation and its list."""
    year = tmp_path / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(year / "JPEGImages" / "a.png")
    (year / "Annotations" / "a.xml").write_text(PLAIN)
    (year / "ImageSets" / "Main" / "all.txt").write_text("a\n")
    return tmp_path


def test_odd_annotations_have_the_right_boxes(voc: Path) -> None:
    for name, (data, boxes) in GOOD.items():
        (voc / "VOC2007" / "Annotations" / "a.xml").write_bytes(data)
        (record,) = read_split(voc, "VOC2007/all").records
        assert [instance["bbox"] for instance in record["instances"]] == boxes, name
        assert all(i["bbox_label"] == 11 and i["ignore_flag"] == 0 for i in record["instances"]), name


@pytest.mark.parametrize("name", BAD)
def test_a_broken_annotation_is_one_sentence(voc: Path, name: str) -> None:
    data, said = BAD[name]
    (voc / "VOC2007" / "Annotations" / "a.xml").write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_split(voc, "VOC2007/all")
    assert "a.xml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no image left because all 1 were skipped, the first because"):
        read_split(voc, "VOC2007/all", skip_bad=True)


def test_odd_lists_are_read(voc: Path) -> None:
    path = voc / "VOC2007" / "ImageSets" / "Main" / "all.txt"
    for data in (b"a\r\n", b"\xef\xbb\xbfa\n", "a\n".encode("utf-16"), b"\n a\t\n\n", b"a\r"):
        path.write_bytes(data)
        assert [record["img_id"] for record in read_split(voc, "VOC2007/all").records] == ["a"], data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "must have one image id a line, got none"),
        (b"\xfc\n", "must be text in UTF-8"),
        (b"a  1\n", "name a list of all classes"),
        (b"b\n", r"b\.jpg does not exist"),
        (b"a.png\n", r"a\.png\.jpg does not exist"),
        (b"/data/a\n", "must be named as their files in JPEGImages, without ending, got '/data/a'"),
        (b"../JPEGImages/a\n", "must be named as their files in JPEGImages"),
        (b"x" * 5000, "must be named as their files in JPEGImages"),
    ],
)
def test_a_broken_list_is_one_sentence(voc: Path, data: bytes, said: str) -> None:
    (voc / "VOC2007" / "ImageSets" / "Main" / "all.txt").write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read_split(voc, "VOC2007/all")
    assert len(str(caught.value)) - len(str(voc)) < 400
