"""The transforms of an image and its boxes before the detector: mmdet's own, from its config files.

Normalisation is not among them, because mmdet's detectors do it in their data_preprocessor.
"""

from typing import Any

from esbnn_core.errors import InputError, reason_of
from tasks.detection.mmdet.api import TRANSFORMS, Compose, load_config, scope

Pipeline = list[dict[str, Any]]


def read_pipelines(path: str) -> tuple[Pipeline, Pipeline]:
    """The pipelines (training, evaluation) of an mmdet config file: its train_pipeline and test_pipeline.

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
        InputError: an unknown transform, or options that it does not take.
    """
    steps = []
    with scope():
        for step in pipeline:
            try:
                steps.append(TRANSFORMS.build(dict(step)))
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                raise InputError(
                    f"transform {step.get('type')} of the pipeline cannot be built ({reason_of(error)})"
                ) from error
        return Compose(steps)


def drop_augmentation(train: Pipeline, evaluation: Pipeline) -> Pipeline:
    """A training pipeline for overfitting: images as in evaluation, with their boxes."""
    annotate = [step for step in train if step["type"] == "LoadAnnotations"]
    rest = [step for step in evaluation[1:-1] if step["type"] != "LoadAnnotations"]
    return [evaluation[0], *annotate, *rest, train[-1]]
