"""Folders of super-resolution images in their usual layouts, paired and checked before anything runs.

HIGH and LOW list the places of high-resolution (HR) and low-resolution (LR) images. An LR file is named `namex2`,
`name_x2`, `name_LRBI_x2` (Manga109), `name_SRF_2_LR` (SelfExSR), or like its HR file.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import list_images, read_image_size
from tasks.super_resolution.metrics import WINDOW

HIGH = ("{n}/HR", "{n}/{m}_HR", "{n}/{m}_train_HR", "{n}/GTmod12", "{n}/image_SRF_{s}", "{n}", "{n}_HR", "{n}_train_HR")
"""Places of the HR images of a set, below the root or its folder `benchmark`; the first with images is used.
n: the set, m: the last part of its path (of train/mine: mine), s: the scale."""
LOW = (
    *("{n}/LR_bicubic/X{s}", "{n}/LR/X{s}", "{n}/LRBI/X{s}", "{n}/X{s}", "{n}/LRbicx{s}", "{n}/LR_bicubic", "{n}/LR"),
    *("{n}/{m}_LR_bicubic/X{s}", "{n}/{m}_train_LR_bicubic/X{s}", "{n}_LR_bicubic/X{s}", "{n}_train_LR_bicubic/X{s}"),
)
"""Places of its LR images, X2 also as x2; otherwise the HR folder itself."""
ALIASES = dict.fromkeys(("B100", "BSD100", "BSDS100"), ("B100", "BSD100", "BSDS100"))
"""Names that the folder of a set may have."""
UNIONS = {"DF2K": ("DIV2K", "Flickr2K")}
"""Sets that consist of several others if no folder has their name."""

_SCALED = re.compile(r"x\d$")

Files = dict[str, list[Path]]
"""Image files by the name that HR and LR share; more than one is a fault."""


@dataclass(frozen=True)
class Pair:
    """One image.

    Attributes:
        name: that its files share.
        hr: HR file, None without one.
        lr: LR file, None if it is to be made.
    """

    name: str
    hr: Path | None
    lr: Path | None


@dataclass
class Folder:
    """Images of a set.

    Attributes:
        pairs: by name.
        skipped: why an image was left out, a sentence by name.
    """

    pairs: list[Pair] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def read_set(
    root: str | Path, name: str, scale: int, *, read_lr: bool = False, patch: int = 0, skip_bad: bool = False
) -> Folder:
    """All images of a set below a root.

    Args:
        root: folder of the sets.
        name: of a benchmark, a training set or any folder of images.
        scale: the HR side over the LR side.
        read_lr: pair HR with the LR images on disk; otherwise LR is to be made and files on disk are ignored.
        patch: side of the HR patches to be cut, 0 for whole images that are scored.
        skip_bad: leave out images with a fault.

    Raises:
        InputError: no such set, no LR images of it, or no image left; the first fault of an image unless `skip_bad`.
    """
    folder = _find_high(root, name, scale)
    if folder is None and name in UNIONS:
        parts = [read_set(root, n, scale, read_lr=read_lr, patch=patch, skip_bad=skip_bad) for n in UNIONS[name]]
        joined = Folder()
        for part in parts:
            joined.pairs += part.pairs
            joined.skipped.update(part.skipped)
        return joined
    if folder is None:
        raise InputError(
            f"{root} must have a folder {name}, {name}/HR or {name}_train_HR with images for the set {name}, got none: "
            f"set data.root, or name another set"
        )
    high, beside = _list_high(folder, scale)
    low = _list_low(root, name, folder, high, beside, scale) if read_lr else {}

    def check(key: str) -> Pair:
        if key not in high:
            raise InputError(f"LR image {low[key][0]} has no HR image {key} in {folder}: place it there or take LR out")
        above = _single(key, high)
        size = read_image_size(above)
        _check_large_enough(above, size, scale, patch)
        if not read_lr:
            return Pair(key, above, None)
        if key not in low:
            where = next(iter(low.values()))[0].parent
            raise InputError(
                f"HR image {above} has no LR image {key}x{scale} in {where}: place it there, take HR out or set "
                f"data.lr to make"
            )
        below = _single(key, low)
        _check_fit(above, size, below, read_image_size(below), scale)
        return Pair(key, above, below)

    return _sift(folder, sorted({*high, *low}), check, skip_bad)


def read_images(folder: str | Path, hr: str | Path | None, scale: int, *, skip_bad: bool = False) -> Folder:
    """Any images to upscale, by file name, each with the image of its name in the folder `hr` if that is given.

    An HR image without an LR image is not a fault.

    Args:
        folder: of the images.
        hr: folder of their HR images, or None.
        scale: the HR side over the LR side.
        skip_bad: leave out images with a fault.

    Raises:
        InputError: a missing or empty folder, or no image left; the first fault of an image unless `skip_bad`.
    """
    for given, option in ((folder, "images"), (hr, "hr")):
        if given is not None and not Path(given).is_dir():
            raise InputError(f"folder {given} does not exist: set data.{option} to a folder of images")
    low = _group((path.stem, path) for path in list_images(Path(folder), report_others=True))
    if not low:
        raise InputError(f"folder {folder} has no image (.png, .jpg, ...): set data.images to another")
    high = _list_high(Path(hr), scale)[0] if hr is not None else {}

    def check(name: str) -> Pair:
        below = _single(name, low)
        size = read_image_size(below)
        if hr is None:
            return Pair(name, None, below)
        key = _key(name, scale, high)
        if key not in high:
            raise InputError(f"image {below} has no HR image {key} in {hr}: place it there or unset data.hr")
        above = _single(key, high)
        _check_fit(above, read_image_size(above), below, size, scale)
        return Pair(name, above, below)

    return _sift(Path(folder), sorted(low), check, skip_bad)


def _find_high(root: str | Path, name: str, scale: int) -> Path | None:
    places = (path for path in _places(root, name, scale, HIGH) if path.is_dir() and list_images(path))
    return next(places, None)


def _places(root: str | Path, name: str, scale: int, layouts: Sequence[str]) -> Iterator[Path]:
    for alias in ALIASES.get(name, (name,)):
        # the name may be that of the folder, DIV2K_train_HR; its LR is then DIV2K_train_LR_bicubic
        for known in dict.fromkeys((alias, alias.removesuffix("_HR"))):
            for base in (Path(root), Path(root) / "benchmark"):
                for layout in layouts:
                    sub = layout.format(n=known, m=Path(known).name, s=scale)
                    yield base / sub
                    if sub.endswith(f"/X{scale}"):
                        yield base / f"{sub[: -len(str(scale)) - 1]}x{scale}"


def _list_high(folder: Path, scale: int) -> tuple[Files, Files]:
    """HR files of a folder by name, and the LR files of this scale among them."""
    paths = list_images(folder)
    stems = {path.stem for path in paths}
    high, low = [], []
    selfexsr = any(re.search(r"_SRF_\d_HR$", stem) for stem in stems)
    for path in paths:
        bare = re.sub(r"_?x\d$", "", path.stem)
        if re.search(r"_LRBI_x\d$|_SRF_\d_LR$|_LR_x\d$|_LR$", path.stem) or (bare != path.stem and bare in stems):
            low.append((_strip_scale(path.stem, scale), path))
        # the folders of SelfExSR contain results of other methods too
        elif not selfexsr or path.stem.endswith(f"_SRF_{scale}_HR"):
            high.append((re.sub(rf"(_HR_x{scale}|_SRF_{scale}_HR|_HR)$", "", path.stem), path))
    # a name of another scale is not stripped
    return _group(high), _group((key, path) for key, path in low if key != path.stem)


def _list_low(root: str | Path, name: str, folder: Path, high: Files, beside: Files, scale: int) -> Files:
    """LR files by name, from the first place with any. Raises InputError."""
    for place in _places(root, name, scale, LOW):
        paths = list_images(place) if place.is_dir() and place != folder else []
        # one folder may have the files of several scales
        named = [(key, p) for p in paths if (key := _key(p.stem, scale, high)) in high or not _SCALED.search(key)]
        if named:
            return _group(named)
    if beside:
        return beside
    raise InputError(
        f"the set {name} in {folder} must have LR images of scale {scale}, e.g. namex{scale}.png in "
        f"LR_bicubic/X{scale}, got none: place them there, or set data.lr to make"
    )


def _strip_scale(stem: str, scale: int) -> str:
    return re.sub(rf"(_LRBI_x{scale}|_SRF_{scale}_LR|_LR_x{scale}|_LR|_?x{scale})$", "", stem)


def _key(stem: str, scale: int, high: Files) -> str:
    """The name that an LR file shares with its HR file."""
    return stem if stem in high else _strip_scale(stem, scale)


def _group(named: Iterator[tuple[str, Path]] | list[tuple[str, Path]]) -> Files:
    files: Files = {}
    for key, path in named:
        files.setdefault(key, []).append(path)
    return files


def _single(key: str, files: Files) -> Path:
    first, *others = files[key]
    if others:
        raise InputError(f"images {first} and {others[0]} have the same name, {key}: rename one or take it out")
    return first


def _sift(folder: Path, keys: list[str], check: Callable[[str], Pair], skip_bad: bool) -> Folder:
    """The images that pass `check`. Raises InputError."""
    found = Folder()
    for key in keys:
        try:
            found.pairs.append(check(key))
        except InputError as error:
            if not skip_bad:
                raise
            found.skipped[key] = str(error)
    if not found.pairs:
        first = next(iter(found.skipped.values()))
        raise InputError(
            f"folder {folder} has no image left because all {len(keys)} were skipped, the first because {first}"
        )
    return found


def _check_large_enough(path: Path, size: tuple[int, int], scale: int, patch: int) -> None:
    # sides are cropped to a multiple of the scale before patches are cut
    least = patch or WINDOW + 2 * scale
    if min(side - side % scale for side in size) < least:
        raise InputError(
            f"image {path} must have at least {least}x{least} pixels for "
            + (f"patches of {patch}" if patch else "SSIM")
            + f", got {size[0]}x{size[1]}: take it out"
            + (", or set data.patch lower" if patch else "")
        )


def _check_fit(high: Path, size: tuple[int, int], low: Path, small: tuple[int, int], scale: int) -> None:
    # HR is cropped at its right and bottom to a multiple of the scale
    if (size[0] // scale, size[1] // scale) != small:
        raise InputError(
            f"LR image {low} must have {size[0] // scale}x{size[1] // scale} pixels at scale {scale}, got "
            f"{small[0]}x{small[1]} for the {size[0]}x{size[1]} of HR image {high}: correct one, or set data.scale"
        )
