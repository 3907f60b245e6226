"""How many images the published values are of: a result on fewer is not a result on the set."""

from tasks.evaluate.datasets import DATASETS

SIZES = {(dataset.name, split): number for dataset in DATASETS.values() for split, number in dataset.images.items()}


def published_images(dataset: str, split: str) -> int | None:
    """Images of a set as it was published, None for one that is not known here.

    Args:
        dataset: as an entry of the catalogue names it.
        split: likewise; ImageNet has the 50,000 of val under both names.
    """
    return SIZES.get((dataset, split))
