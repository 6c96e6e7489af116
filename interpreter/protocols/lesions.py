"""Segmentation of the lesions of diabetic retinopathy, scored as in IDRiD's challenge."""

from __future__ import annotations

from collections.abc import Sequence

from interpreter.errors import ConfigurationError
from interpreter.protocols.protocol import Experiment, Protocol, TableRequest
from interpreter.rules import Rules
from interpreter.task import Task

LESIONS = Task(name="lesions", targets=("MA", "HE", "EX", "SE"), overlapping=True)


def idrid_lesions() -> Protocol:
    """Train and test on IDRiD's own splits; AUC-PR of each lesion at 33 thresholds."""
    return Protocol(
        name="idrid-lesions",
        edition="strict",
        description="Train on IDRiD's training images, test on its test images; AUC-PR of each lesion, 33 thresholds.",
        task=LESIONS,
        experiments=_train_and_test,
        notes=(
            "Probability maps at native size, 8 bits, thresholds 0, 8, ..., 256, all pixels of all test images "
            "together, as in the challenge; one network for all lesions, which may overlap.",
            "An image without a mask of a lesion is taken to be free of it, if another image of its data set has one; "
            "else the lesion is neither learnt nor scored there.",
        ),
        metric="auc_pr_33",
        by_class=True,
    )


def _train_and_test(request: TableRequest) -> Sequence[Experiment]:
    if request.targets:
        raise ConfigurationError(
            "idrid-lesions tests on the test images of the data set it trains on; leave out --target"
        )
    names = request.domains
    return [
        Experiment(
            row,
            seed,
            "+".join(names),
            tuple((name, "train") for name in names),
            tuple((name, "test") for name in names),
            scoring_rules=Rules(region="image", size="native"),
        )
        for row in request.rows
        for seed in request.seeds
    ]
