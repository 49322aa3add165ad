"""Train: W from stored latents of originals and their translations; no image is read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from id2.corpora import open_inside
from id2.requests import TrainRequest
from id2.results import MethodValidation, TrainingData, TrainReport, Validation
from id2.stages import stage
from id2core import environment
from id2core.encoders.embedding import EMBEDDINGS
from id2core.errors import TrainError
from id2core.runs.execution import rank
from id2core.runs.progress import OnStage, into_tally, silent
from id2core.runs.records import recorded
from id2core.store import datasets, storage, strict_json
from id2core.training import closed_form, gradient, pairs
from id2core.training.closed_form import Trial
from id2core.training.config import GradientConfig
from id2core.training.pairs import Pairs
from id2core.transforms import cohorts, reference_rows
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.translation.rows import TRANSLATIONS

WEIGHTS, REPORT, PLAN = "W.safetensors", "report.json", "train.json"
CLOSED_FORM = "closed-form"
# Options of gradient descent that the closed form shares.
_SHARED = {"dimensions", "validation_share"}


def run(request: TrainRequest) -> TrainReport | None:
    """Train, go on from the last checkpoint, or read the report of a finished training.

    Of the processes that `torchrun` starts, the first one writes and returns the report; the others return
    None.

    Raises:
        TrainError: `out` holds a training with other options or latents.
        PairsError, GradientError, ClosedFormError, DatasetError: nothing can be trained on these data.
    """
    out = storage.normalize(request.out)
    if rank():
        training = _Training(request, out, "")
        if training.finished() is None:
            training.transforms()
        return None
    with recorded(out, "train", request.model_dump()) as recorder:
        report = stage("train", lambda: _Training(request, out, recorder.execution.run_id).report())
        recorder.count(listed=report.data.latents)
        for name, seconds in report.seconds.items():
            recorder.seconds[name] = seconds
    return report


class _Training:
    """One training in this process; with torchrun, every process has one."""

    def __init__(self, request: TrainRequest, out: str, run_id: str) -> None:
        self._request, self._out, self._run_id = request, out, run_id
        self._config = GradientConfig(
            **{name: getattr(request, name) for name in GradientConfig.model_fields}
        )
        self._first = rank() == 0
        self._progress: OnStage = into_tally() if self._first else silent
        self._seconds: dict[str, float] = {}
        began = time.monotonic()
        self._pairs = self._load_pairs()
        self._seconds["latents"] = time.monotonic() - began
        self._plan_id = self._check_same_run()

    def report(self) -> TrainReport:
        """Train and report, or read the report of the same training."""
        return self.finished() or self._write_result(self.transforms())

    def finished(self) -> TrainReport | None:
        """Read the report of the same training; None where it is not finished."""
        earlier = read_report(self._out)
        if earlier is None or earlier.plan_id != self._plan_id:
            return None
        return earlier.model_copy(update={"resumed": True})

    def transforms(self) -> dict[str, Transform]:
        """Train what the method asks for: its transform, and the closed form that it starts at."""
        transforms: dict[str, Transform] = {}
        method = self._request.method
        if method != "gradient":
            if not self._first and method == CLOSED_FORM:
                return {}
            began = time.monotonic()
            transforms[CLOSED_FORM] = self._closed_form()
            self._seconds[CLOSED_FORM] = time.monotonic() - began
        if method != CLOSED_FORM:
            began = time.monotonic()
            transforms[method] = gradient.fit(
                self._pairs,
                self._config,
                Path(self._out, method),
                start=transforms.get(CLOSED_FORM),
                device=self._request.settings().device,
                progress=self._progress,
            )
            self._seconds[method] = time.monotonic() - began
        return transforms

    def _load_pairs(self) -> Pairs:
        request = self._request
        embeddings = [open_inside(uri, EMBEDDINGS) for uri in request.embeddings]
        translations = [open_inside(uri, TRANSLATIONS) for uri in request.translations]
        cache = request.cache or storage.join(self._out, "cache")
        return pairs.load(embeddings, translations, cache, self._progress)

    @property
    def _identity(self) -> dict[str, Any]:
        """Return the options that decide the outcome, besides the latents."""
        recipe = self._config.model_dump()
        if self._request.method == CLOSED_FORM:
            recipe = {name: value for name, value in recipe.items() if name in _SHARED}
        return {"method": self._request.method, "shrinkage": self._request.shrinkage, "recipe": recipe}

    def _check_same_run(self) -> str:
        """Return the id of this training; raise TrainError where the folder holds another one."""
        wanted = {"latents": self._pairs.digest, **self._identity}
        where = Path(self._out, PLAN)
        begun = [p for name in (WEIGHTS, "checkpoint.pt") for p in Path(self._out).glob(f"*/{name}")]
        held = self._held(where) if begun and where.exists() else wanted
        different = [name for name in ("latents", "method", "shrinkage") if held[name] != wanted[name]]
        old, new = held["recipe"], wanted["recipe"]
        different += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if different:
            raise TrainError(
                f"{self._out} holds a training with other {', '.join(different)} ({where} has them all): "
                "choose another --out, or give what it was begun with"
            )
        if self._first:
            storage.write_bytes(str(where), json.dumps(wanted, indent=1).encode())
        return datasets.digest_of(wanted)

    def _held(self, where: Path) -> dict[str, Any]:
        """What the training in the folder was begun with."""
        try:
            held = strict_json.read_file(where)
            recipe = held["recipe"]
            if not isinstance(recipe, dict) or not {"latents", "method", "shrinkage"} <= held.keys():
                raise ValueError("a name is missing")
        except (ValueError, LookupError) as error:
            raise TrainError(f"{where} is damaged ({error}): choose another --out") from error
        return held

    def _closed_form(self) -> Transform:
        """The closed form, from its file where it is made already: of several processes one makes it."""
        place = Path(self._out, CLOSED_FORM)
        place.mkdir(parents=True, exist_ok=True)
        path, partial = place / WEIGHTS, place / f".{WEIGHTS}.partial"
        with FileLock(place / ".lock"):
            if not path.exists():
                solved = closed_form.fit(
                    self._pairs,
                    self._config.dimensions,
                    self._request.shrinkage,
                    validation_share=self._config.validation_share,
                    progress=self._progress,
                )
                solved.transform.save(partial)
                partial.replace(path)
        return load_transform(str(path))

    def _write_result(self, transforms: dict[str, Transform]) -> TrainReport:
        """Put the result in its place, and write the report."""
        request, place = self._request, Path(self._out)
        origins = self._pairs.offsets[:-1]
        some = self._pairs[origins[cohorts.chosen(len(origins))]]
        result = reference_rows.with_cohort(transforms[request.method], some)
        result.save(place / f".{WEIGHTS}.partial")
        (place / f".{WEIGHTS}.partial").replace(place / WEIGHTS)
        places = {"embeddings": request.embeddings, "translations": request.translations}
        report = TrainReport(
            run_id=self._run_id,
            plan_id=self._plan_id,
            config={**self._identity, **places},
            seconds={name: round(seconds, 2) for name, seconds in self._seconds.items()},
            versions=environment.versions(),
            W=str(place / WEIGHTS),
            transform_id=result.transform_id,
            transforms={
                name: {"transform_id": w.transform_id, **w.metadata} for name, w in transforms.items()
            },
            validation=self._validation(transforms),
            data=self._data(),
        )
        storage.write_bytes(
            str(place / REPORT), report.model_dump_json(indent=1, exclude={"resumed"}).encode()
        )
        return report

    def _data(self) -> TrainingData:
        return TrainingData(
            **self._pairs.ids,
            digest=self._pairs.digest,
            latents=len(self._pairs.latents),
            latent_size=self._pairs.latents.shape[1],
            origins=len(self._pairs.origin_ids),
            left_out=self._pairs.unpaired,
        )

    def _validation(self, transforms: dict[str, Transform]) -> Validation | None:
        """Measure raw latents and every method on the held-out origins, where there are any."""
        held_out = self._pairs.held_out(self._config.validation_share)
        if not held_out.any():
            return None
        trial = Trial.of(self._pairs, held_out)
        methods = {}
        for name, w in {"raw": Transform(), **transforms}.items():
            mean_ap, separation = trial.score(w)
            methods[name] = MethodValidation(mean_ap=mean_ap, separation=separation)
        return Validation(origins=int(held_out.sum()), queries=len(trial.queries), methods=methods)


def read_report(out: str) -> TrainReport | None:
    """Read report.json of a finished training; None where there is none, or a damaged one."""
    return strict_json.read_derived(storage.join(out, REPORT), TrainReport)
