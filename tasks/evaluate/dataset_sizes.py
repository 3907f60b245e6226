"""How many images the published values are of: a result on fewer is not a result on the set."""

SIZES = {
    # shares of ours, then the published sets
    ("fashion_mnist_mini", "test"): 3_000,
    ("fashion_mnist", "test"): 10_000,
    ("cifar10", "test"): 10_000,
    ("cifar100", "test"): 10_000,
    ("imagenet", "val"): 50_000,
    ("imagenet", "test"): 50_000,
    ("VOC2007", "test"): 4_952,
    ("Set5", "test"): 5,
    ("Set14", "test"): 14,
    ("B100", "test"): 100,
    ("BSD100", "test"): 100,
    ("Urban100", "test"): 100,
    ("Manga109", "test"): 109,
}


def published_images(dataset: str, split: str) -> int | None:
    """Images of a set as it was published, None for one that is not known here.

    Args:
        dataset: as an entry of the catalogue names it.
        split: likewise; ImageNet has the 50,000 of val under both names.
    """
    return SIZES.get((dataset, split))
