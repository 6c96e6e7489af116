"""Running a protocol: extraction, training and scoring. Work that was completed before is reused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpreter.adapting import best_of, expected_at
from interpreter.checkpoint import load_interpreter
from interpreter.counting import cost_of
from interpreter.data import LabelledImage
from interpreter.errors import ConfigurationError, DataError
from interpreter.evaluation import Compared, OnImage, evaluate
from interpreter.metrics import finite_or_none
from interpreter.network import Interpreter
from interpreter.prediction import Segmentation
from interpreter.protocols.features import ProtocolFeatures
from interpreter.protocols.protocol import Experiment, Row, TableRequest
from interpreter.protocols.score_cache import inputs_of, read_scores, write_scores
from interpreter.rendering import draw_comparison, encode_picture, label_map_path
from interpreter.splits import group_of
from interpreter.training import Training
from store.interrupts import Stop
from store.spec import FeatureSpec

PICTURES = "pictures"
ADAPTATION_SPLIT = "train"
"""Split of a tested data set whose photographs, without labels, decide the resolution it is read at (``adapt``)."""


@dataclass(frozen=True)
class Result:
    """One experiment's scores.

    Attributes:
        summary: ``Scores.summary``, with facts of the training and of the network's size.
        folder: holds the interpreter, its training state, its scores and pictures/.
    """

    experiment: Experiment
    summary: dict[str, Any]
    folder: Path


class ProtocolRun:
    """Runs a protocol on data sets.

    Args:
        features: features and images of the protocol's data sets.
        out: receives interpreters, scores and pictures.
    """

    def __init__(self, features: ProtocolFeatures, out: Path) -> None:
        self.features, self.out = features, out
        self.protocol, self.store, self.settings = features.protocol, features.store, features.settings
        self._say = features.say

    def run(self, targets: Sequence[str], rows: Sequence[Row], seeds: Sequence[int]) -> list[Result]:
        """Run every experiment of the table, in the protocol's order."""
        names = tuple(self.features.sources)
        if unknown := sorted(set(targets) - set(names)):
            raise ConfigurationError(f"no data set {', '.join(unknown)} among {', '.join(names)}")
        request = TableRequest(names, tuple(targets), tuple(rows), tuple(seeds))
        experiments = [
            dataclasses.replace(experiment, scoring_rules=self.settings.scoring(experiment.scoring_rules))
            for experiment in self.protocol.experiments(request)
        ]
        if self.settings.adapt:
            for experiment in experiments:
                _require_adaptable(experiment)
        results = []
        for number, experiment in enumerate(experiments, 1):
            self._say(f"{number} of {len(experiments)}: {experiment.path}")
            if (result := self._result(experiment)) is not None:
                results.append(result)
        return results

    def _result(self, experiment: Experiment) -> Result | None:
        """Return the result of an experiment; None, after saying so, if there are fewer images than it asks for."""
        spec, folder = self.features.extract_for_experiment(experiment), self.out / experiment.path
        sources = self.features.images(experiment.sources)
        if experiment.labels is not None and experiment.labels > len(sources):
            self._say(f"  left out: there are only {len(sources)} labelled images")
            return None
        tests = self.features.images(experiment.tests, experiment.test_view)
        _require_disjoint(experiment, sources, tests)
        adapted_on = self._adapted_on(experiment, spec) if self.settings.adapt else []
        inputs = inputs_of(experiment, spec, self.settings, self.protocol.task, (sources, tests), adapted_on)
        summary = read_scores(folder, inputs)
        if summary is None:
            summary = self._train_and_score(experiment, spec, folder, sources, tests)
            write_scores(folder, inputs, summary)
        return Result(experiment, summary, folder)

    def _train_and_score(
        self,
        experiment: Experiment,
        spec: FeatureSpec,
        folder: Path,
        sources: list[LabelledImage],
        tests: list[LabelledImage],
    ) -> dict[str, Any]:
        task = self.protocol.task
        training = Training(
            self.store,
            spec,
            task,
            sources,
            self.settings.config(experiment.row, task),
            self.settings.training(experiment.row, experiment.seed, experiment.labels),
            folder,
            self.store.backbone_of(spec) or self.settings.backbone or self.settings.preset,
            self.settings.device,
            rules=experiment.training_rules,
            validation=tests if experiment.select_on_target else None,
        )
        self._train(training)
        interpreter, card = load_interpreter(folder)
        read, chosen = self._choose_resolution(experiment, interpreter.to(training.device), spec)
        rules = experiment.scoring_rules
        if read != spec and rules.size == "network":  # compare at the size trained at, whatever is read
            rules = rules.model_copy(update={"size": spec.resolution})
        draw = self._draw_into(folder / PICTURES)
        scores = evaluate(
            interpreter, self.store, read, task, tests, draw, rules=rules, mirrored=self.settings.mirrored
        )
        cost, larger = cost_of(interpreter), read.resolution**2 / spec.resolution**2
        about = {
            "training_images": len(training.train_images),
            "validation_images": len(training.validation_images),
            "epoch": card.metrics.epoch,
            "temperature": card.temperature,
            "weights": cost.parameters,
            "flops": cost.flops * len(self.features.test_views(experiment)) * larger,
        }
        return scores.summary() | about | chosen

    def _train(self, training: Training) -> None:
        """Train to the end, or until Ctrl-C, SIGTERM or SIGHUP; the next run of the protocol resumes the training."""
        training.prepare()
        stop, single_process = Stop(), training.accelerator.num_processes == 1
        with stop.on_interrupt(
            lambda: self._say("  finishing a step; Ctrl-C again interrupts at once"), single_process=single_process
        ):
            training.run(lambda epoch, _, loss: self._say(f"  epoch {epoch + 1}, loss {loss:.3f}"), stop)
        if stop.requested:  # after the last step, where the training itself no longer stops
            raise KeyboardInterrupt

    def _choose_resolution(
        self, experiment: Experiment, interpreter: Interpreter, spec: FeatureSpec
    ) -> tuple[FeatureSpec, dict[str, Any]]:
        """Return the spec of the features that a trained network is scored on, and the summary of how it was chosen."""
        if not self.settings.adapt:
            return spec, {}
        row, view, splits = experiment.row, experiment.test_view, _adaptation_splits(experiment)
        images, expected = [image.seen_as(view) for image in self.features.photographs(splits)], []
        for resolution in sorted({spec.resolution, *self.settings.adapt}):
            read = self.features.extract_at_resolution(_resolution_override(resolution, spec), row, splits, (view,))
            expected.append(expected_at(interpreter, self.store, read, images))
            self._say(f"  read at {read.resolution}: expected Dice {100 * expected[-1].dice:.1f}")
        # A network that finds nothing at any resolution is scored at the one it was trained at.
        nothing = all(math.isnan(one.dice) for one in expected)
        best = spec.resolution if nothing else best_of(expected, spec.resolution).spec.resolution
        chosen = {
            "read_at": best,
            "expected_dice_at": {str(e.spec.resolution): finite_or_none(e.dice) for e in expected},
        }
        views = self.features.test_views(experiment)
        return self.features.extract_at_resolution(
            _resolution_override(best, spec), row, experiment.tests, views
        ), chosen

    def _adapted_on(self, experiment: Experiment, spec: FeatureSpec) -> list[LabelledImage]:
        """The photographs that decide at which resolution the tested data set is read.

        Resolutions that the network cannot read raise SpecError here, before the training.
        """
        for resolution in self.settings.adapt:
            spec.with_resolution(resolution)
        for name, split in (splits := _adaptation_splits(experiment)):
            self.features.extract(name, split, experiment.row, (experiment.test_view,))
        return self.features.photographs(splits)

    def _draw_into(self, folder: Path) -> OnImage:
        folder.mkdir(parents=True, exist_ok=True)

        def draw(image: LabelledImage, _: Segmentation, compared: Compared) -> None:
            known = image.known(self.protocol.task)
            picture = draw_comparison(compared.masks[known], compared.truth[known], compared.inside)
            file = label_map_path(folder, image.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_picture(picture))

        return draw


def _require_adaptable(experiment: Experiment) -> None:
    """Raise ConfigurationError unless the experiment tests one data set, and trains on nothing of it."""
    tested = {name for name, _ in experiment.tests}
    if len(tested) > 1 or tested & {name for name, _ in experiment.sources}:
        raise ConfigurationError(
            f"{experiment.path}: `adapt` expects each training to be tested on a single data set, of which it has seen "
            "nothing; leave out the setting"
        )


def _resolution_override(resolution: int, spec: FeatureSpec) -> int | None:
    """None for the training's own resolution, so that the request equals the earlier one and is not run again."""
    return None if resolution == spec.resolution else resolution


def _adaptation_splits(experiment: Experiment) -> list[tuple[str, str]]:
    """The splits whose photographs decide at which resolution the tested data sets are read."""
    return [(name, ADAPTATION_SPLIT) for name, _ in experiment.tests]


def _require_disjoint(experiment: Experiment, sources: Sequence[LabelledImage], tests: Sequence[LabelledImage]) -> None:
    """Raise DataError if a photograph, or a group such as a patient, is both trained and tested on.

    The former happens if one data set contains another.
    """
    trained = {image.key.image_id: image.name for image in sources}
    both = [(trained[test.key.image_id], test.name) for test in tests if test.key.image_id in trained]
    if both:
        raise DataError(
            f"{experiment.path}: {len(both)} photographs would be both trained and tested on; {both[0][0]} of the "
            f"training images is the same file as {both[0][1]} of the test images: leave one of them out"
        )
    groups = {group_of(image) for image in sources}
    if shared := [test for test in tests if group_of(test) in groups]:
        raise DataError(
            f"{experiment.path}: {len(shared)} test images are of groups (patients) that are trained on, such as "
            f"{shared[0].name} of the group {group_of(shared[0])[1]}: a group belongs to one split"
        )
