"""What is done to an image and its boxes before the detector sees them: mmdet's own transforms, from its config files.

Normalisation is not among them: mmdet's detectors do it themselves, in their data_preprocessor.
"""

from typing import Any

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import TRANSFORMS, Compose, load_config, scope

Pipeline = list[dict[str, Any]]


def from_config(path: str) -> tuple[Pipeline, Pipeline]:
    """(training, evaluation) of an mmdet config file, its variables train_pipeline and test_pipeline.

    Raises:
        InputError: a file without them.
    """
    config = load_config(path)
    for name in ("train_pipeline", "test_pipeline"):
        if not config.get(name):
            raise InputError(f"config {path} has no {name}: name a file that has both")
    plain = config.to_dict()
    return plain["train_pipeline"], plain["test_pipeline"]


def compose(pipeline: Pipeline) -> Any:
    """Record -> {"inputs": uint8 or float (3, H, W) in BGR, "data_samples": DetDataSample}.

    Raises:
        InputError: a transform that mmdet does not know, or options that it does not take.
    """
    steps = []
    with scope():
        for step in pipeline:
            try:
                steps.append(TRANSFORMS.build(dict(step)))
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                reason = str(error.args[0] if error.args else error).strip().splitlines()[0]
                raise InputError(f"transform {step.get('type')} of the pipeline cannot be built ({reason})") from error
        return Compose(steps)


def without_augmentation(train: Pipeline, evaluation: Pipeline) -> Pipeline:
    """For overfitting: training images as they are evaluated, their boxes resized with them."""
    annotate = [step for step in train if step["type"] == "LoadAnnotations"]
    rest = [step for step in evaluation[1:-1] if step["type"] != "LoadAnnotations"]
    return [evaluation[0], *annotate, *rest, train[-1]]
