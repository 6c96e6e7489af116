"""Running a protocol: extraction, training, scoring. Whatever was done before is not done again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpreter.adapting import best_of, expected_at
from interpreter.checkpoint import load_interpreter
from interpreter.config import InterpreterConfig, of_today
from interpreter.counting import cost_of
from interpreter.data import Labelled, all_images, labelled_at, network_truth, views_read
from interpreter.errors import ConfigurationError, TrainingDataError
from interpreter.evaluation import OnImage, evaluate
from interpreter.network import Interpreter
from interpreter.pixels import write_pixels
from interpreter.prediction import Segmented
from interpreter.protocols.extracting import Extract, Source, Wanted
from interpreter.protocols.protocol import Asked, Choices, Experiment, Protocol, Row
from interpreter.rendering import compared, encode_picture, picture_of
from interpreter.settings import TrainingSettings
from interpreter.training import Training
from store.feature_store import FeatureStore
from store.files import read_json, replace_json
from store.spec import FeatureSpec
from store.views import IDENTITY, plain_view

SCORES_FILE = "scores.json"
PICTURES = "pictures"
ADAPTED_ON = "train"
"""The split of a tested data set whose photographs, without labels, say what it is read at."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """One experiment's scores.

    Attributes:
        summary: ``Scores.summary``, the size of the network and the images it was selected on.
        folder: holds the interpreter, its training and pictures/.
    """

    experiment: Experiment
    summary: dict[str, Any]
    folder: Path


class Running:
    """A protocol, its data and its places.

    Args:
        protocol: which.
        sources: the data sets, by name.
        store: receives features.
        out: receives interpreters, scores and pictures.
        choices: of the user.
        extract: makes features.
        say: told what is being done.
    """

    def __init__(
        self,
        protocol: Protocol,
        sources: Sequence[Source],
        store: FeatureStore,
        out: Path,
        choices: Choices,
        extract: Extract,
        say: Say = lambda _: None,
    ) -> None:
        self.protocol, self.store, self.out, self.choices = protocol, store, out, choices
        self.sources = {source.name: source for source in sources}
        if len(self.sources) < len(sources):
            raise ConfigurationError(f"two data sets have one name among {', '.join(s.name for s in sources)}")
        self._preprocessing = protocol.preprocessing_for(choices)
        self._extract, self._say = extract, say
        self._digests: dict[Wanted, str] = {}

    def run(self, targets: Sequence[str], rows: Sequence[Row], seeds: Sequence[int]) -> list[Result]:
        """Every experiment of the table, in its order."""
        if unknown := sorted(set(targets) - set(self.sources)):
            raise ConfigurationError(f"no data set {', '.join(unknown)} among {', '.join(self.sources)}")
        asked = Asked(tuple(self.sources), tuple(targets), tuple(rows), tuple(seeds))
        experiments = [
            dataclasses.replace(experiment, scoring_rules=self.choices.scoring(experiment.scoring_rules))
            for experiment in self.protocol.experiments(asked)
        ]
        if self.choices.adapt:
            for experiment in experiments:
                _require_adaptable(experiment)
        results = []
        for number, experiment in enumerate(experiments, 1):
            self._say(f"{number} of {len(experiments)}: {experiment.path}")
            results.append(self._result(experiment))
        return results

    def _result(self, experiment: Experiment) -> Result:
        spec = self._features(experiment)
        folder = self.out / experiment.path
        asked = self._asked(experiment, spec)
        path = folder / SCORES_FILE
        if path.is_file():
            known = read_json(path, ConfigurationError)
            if _as_of_today(known["asked"]) == asked:
                return Result(experiment, known["summary"], folder)
        summary = self._train_and_score(experiment, spec, folder)
        replace_json(path, {"asked": asked, "summary": summary})
        return Result(experiment, summary, folder)

    def _train_and_score(self, experiment: Experiment, spec: FeatureSpec, folder: Path) -> dict[str, Any]:
        task, tests = self.protocol.task, self._images(experiment.tests, experiment.test_view)
        sources = self._images(experiment.sources)
        _require_apart(experiment, sources, tests)
        training = Training(
            self.store,
            spec,
            task,
            sources,
            self._config(experiment.row),
            self.choices.training(experiment.row, experiment.seed, experiment.labels),
            folder,
            self.store.backbone_of(spec) or self.choices.backbone or self.choices.preset,
            self.choices.device,
            rules=experiment.training_rules,
            validation=tests if experiment.select_on_target else None,
        )
        training.run(lambda epoch, _, loss: self._say(f"  epoch {epoch + 1}, loss {loss:.3f}"))
        interpreter, card = load_interpreter(folder)
        read, told = self._reading(experiment, interpreter.to(training.device), spec)
        rules = experiment.scoring_rules
        if read != spec and rules.size == "network":  # whatever is read, the pixels are compared that were learnt in
            rules = rules.model_copy(update={"size": spec.resolution})
        draw = self._draw_into(folder / PICTURES, experiment, read)
        scores = evaluate(interpreter, self.store, read, task, tests, draw, rules=rules, mirrored=self.choices.mirrored)
        cost, larger = cost_of(interpreter), read.resolution**2 / spec.resolution**2
        about = {
            "training_images": len(training.train_images),
            "validation_images": len(training.validation_images),
            "epoch": card.metrics.get("epoch"),
            "temperature": card.temperature,
            "weights": cost.parameters,
            "flops": cost.flops * len(self._test_views(experiment)) * larger,
        }
        return scores.summary() | about | told

    def _config(self, row: Row) -> InterpreterConfig:
        task, choices = self.protocol.task, self.choices
        return InterpreterConfig(
            classes=len(task.classes),
            overlapping=task.overlapping,
            head=row.head,
            width_multiplier=choices.width_multiplier,
            max_width=choices.max_width,
            vss=choices.vss,
            vss_max_size=choices.vss_max_size,
            standardise=choices.standardise and not row.pixels,
        )

    def _features(self, experiment: Experiment) -> FeatureSpec:
        """Extract what an experiment reads, where that is not there."""
        row, test_views = experiment.row, self._test_views(experiment)
        drawn = self.choices.views_of(row)
        views = tuple(dict.fromkeys((plain_view(drawn), *drawn)))
        digests = {self._extracted(name, split, row, views) for name, split in experiment.sources}
        digests |= {self._extracted(name, split, row, test_views) for name, split in experiment.tests}
        spec = self._only_spec(digests)
        if not row.pixels:
            return spec
        images = [image for view in views for image in self._images(experiment.sources, view)]
        images += [image for view in test_views for image in self._images(experiment.tests, view)]
        return self._of_pixels(spec, images)

    def _only_spec(self, digests: set[str]) -> FeatureSpec:
        if len(digests) != 1:
            raise ConfigurationError(f"data sets were extracted under several specs: {', '.join(sorted(digests))}")
        return self.store.spec(next(iter(digests)))

    def _reading(
        self, experiment: Experiment, interpreter: Interpreter, spec: FeatureSpec
    ) -> tuple[FeatureSpec, dict[str, Any]]:
        """The features of the test images that a trained network is scored on, and how these were chosen."""
        if not self.choices.adapt:
            return spec, {}
        places, view = _adapted_on(experiment), experiment.test_view
        images, expected = [image.seen_as(view) for image in self._photographs(places)], []
        for resolution in sorted({spec.resolution, *self.choices.adapt}):
            read = self._features_at(_other(resolution, spec), experiment.row, places, (view,))
            expected.append(expected_at(interpreter, self.store, read, images))
            self._say(f"  read at {read.resolution}: expected Dice {100 * expected[-1].dice:.1f}")
        best = best_of(expected, spec.resolution).spec.resolution
        told = {"read_at": best, "expected_dice": {str(e.spec.resolution): 100 * e.dice for e in expected}}
        views = self._test_views(experiment)
        return self._features_at(_other(best, spec), experiment.row, experiment.tests, views), told

    def _features_at(
        self, resolution: int | None, row: Row, places: Sequence[tuple[str, str]], views: tuple[str, ...]
    ) -> FeatureSpec:
        """Features of data sets at a resolution, the training's if None, extracted where they are not there."""
        spec = self._only_spec({self._extracted(name, split, row, views, resolution) for name, split in places})
        if not row.pixels:
            return spec
        return self._of_pixels(spec, [image.seen_as(v) for image in self._photographs(places) for v in views])

    def _photographs(self, places: Sequence[tuple[str, str]]) -> list[Labelled]:
        """All of some data sets and splits, labelled or not."""
        return [image for name, split in places for image in all_images(self.store, f"{name}:{split}")]

    def _of_pixels(self, spec: FeatureSpec, images: Sequence[Labelled]) -> FeatureSpec:
        folders = [folder for source in self.sources.values() for folder in source.folders]
        return write_pixels(self.store, spec, list(dict.fromkeys(image.key for image in images)), folders)

    def _test_views(self, experiment: Experiment) -> tuple[str, ...]:
        return views_read(experiment.test_view, mirrored=self.choices.mirrored)

    def _extracted(self, name: str, split: str, row: Row, views: tuple[str, ...], resolution: int | None = None) -> str:
        wanted = Wanted(
            self.sources[name], split, row.trajectory, views, self._preprocessing, row.untrained, resolution
        )
        if wanted not in self._digests:
            network = "random weights, " if row.untrained else ""
            network += f"{resolution} pixels, " if resolution else ""
            self._say(f"  features of {name}, {split}: {network}{row.trajectory}, {', '.join(views)}")
            self._digests[wanted] = self._extract(wanted)
        return self._digests[wanted]

    def _images(self, places: Sequence[tuple[str, str]], view: str = IDENTITY) -> list[Labelled]:
        return [image.seen_as(view) for image in labelled_at(self.store, places, self.protocol.task)]

    def _draw_into(self, folder: Path, experiment: Experiment, spec: FeatureSpec) -> OnImage:
        folder.mkdir(parents=True, exist_ok=True)
        task, rules = self.protocol.task, experiment.scoring_rules

        def draw(image: Labelled, found: Segmented) -> None:
            entry = self.store.entry(spec, image.key)
            truth = task.members(network_truth(self.store, entry, image, task, rules))
            picture = compared(found.prediction.masks, truth, rules.counted(entry.fov))
            file = picture_of(folder, image.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_picture(picture))

        return draw

    def _decisive(self, image: Labelled) -> list[Any]:
        """What of an image decides scores: the photograph, and the masks of the task."""
        return [image.name, image.key.image_id, [image.sample.masks.get(t) for t in self.protocol.task.targets]]

    def _adapting(self, experiment: Experiment, spec: FeatureSpec) -> dict[str, Any]:
        """What decides the resolution of a tested data set; what is wrong with it is told before a training."""
        for resolution in self.choices.adapt:
            spec.of_resolution(resolution)
        for name, split in (places := _adapted_on(experiment)):
            self._extracted(name, split, experiment.row, (experiment.test_view,))
        ids = [image.key.image_id for image in self._photographs(places)]
        return {"adapt": sorted(self.choices.adapt), "adapted_on": ids}

    def _asked(self, experiment: Experiment, spec: FeatureSpec) -> dict[str, Any]:
        """Everything that decides an experiment's scores, as JSON has it."""
        plain = dataclasses.asdict(experiment) | {
            "training_rules": experiment.training_rules.model_dump(),
            "scoring_rules": experiment.scoring_rules.model_dump(),
            "spec": spec.digest,
            "settings": self.choices.training(experiment.row, experiment.seed, experiment.labels).model_dump(),
            "config": self._config(experiment.row).model_dump(),
            "task": self.protocol.task.model_dump(),
            "images": [
                [self._decisive(image) for image in self._images(places)]
                for places in (experiment.sources, experiment.tests)
            ],
            # Scores of before do not say that they are neither.
            **({"mirrored": True} if self.choices.mirrored else {}),
            **(self._adapting(experiment, spec) if self.choices.adapt else {}),
        }
        normal: dict[str, Any] = json.loads(json.dumps(plain))
        return normal


def _require_adaptable(experiment: Experiment) -> None:
    """ConfigurationError unless one data set is tested, and nothing of it is learnt from."""
    tested = {name for name, _ in experiment.tests}
    if len(tested) > 1 or tested & {name for name, _ in experiment.sources}:
        raise ConfigurationError(
            f"{experiment.path}: `adapt` is for a tested data set of which nothing is learnt, one for each training; "
            "leave out the setting"
        )


def _other(resolution: int, spec: FeatureSpec) -> int | None:
    """What ``extractor run`` is asked for besides the training's own resolution, which it was asked for before."""
    return None if resolution == spec.resolution else resolution


def _adapted_on(experiment: Experiment) -> list[tuple[str, str]]:
    """Where the photographs are that say what the tested data sets are read at."""
    return [(name, ADAPTED_ON) for name, _ in experiment.tests]


def _as_of_today(asked: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version was asked, with the defaults of what may be chosen since."""
    return asked | {
        "config": of_today(InterpreterConfig, asked["config"]),
        "settings": of_today(TrainingSettings, asked["settings"]),
    }


def _require_apart(experiment: Experiment, sources: Sequence[Labelled], tests: Sequence[Labelled]) -> None:
    """TrainingDataError if a photograph is trained and tested on, as where one data set is part of another."""
    trained = {image.key.image_id: image.name for image in sources}
    both = [(trained[test.key.image_id], test.name) for test in tests if test.key.image_id in trained]
    if both:
        raise TrainingDataError(
            f"{experiment.path}: {len(both)} photographs would be trained and tested on; {both[0][0]} of the training "
            f"images is the same file as {both[0][1]} of the test images: leave one of them out"
        )
