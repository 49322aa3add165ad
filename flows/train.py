"""The train flow: W from stored latents of originals and their translations; no picture is touched."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task

from flows.progress import reporter
from flows.tasks import RETRY, record_run
from id2core import environment
from id2core.encoders.embedding import EMBEDDINGS
from id2core.errors import TrainError
from id2core.runs.progress import Progress, silent
from id2core.store import datasets, storage
from id2core.training import closed_form, gradient, pairs
from id2core.training.closed_form import Trial
from id2core.training.pairs import Pairs
from id2core.training.recipe import Recipe
from id2core.transforms import heads
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.translation.rows import TRANSLATIONS

Method = Literal["closed-form", "gradient", "both"]
WEIGHTS, REPORT, PLAN = "W.safetensors", "report.json", "train.json"
CLOSED_FORM = "closed-form"
# What of a recipe a closed form has, too.
_SHARED = {"dimensions", "validation_share"}
_SET_BY_FIT = {"init", "data"}


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        embeddings, translations: URIs of data sets, as `pairs.load` takes them.
        out: local directory.
        method: `both` is gradient descent that starts at the closed form.
        recipe: of gradient descent; its dimensions and share for validation are the closed form's, too.
        shrinkage: of the closed form; None to choose it by validation.
        cache: local directory of the latents, sorted for training.
        device: of gradient descent.
    """

    embeddings: tuple[str, ...]
    translations: tuple[str, ...]
    out: str
    method: Method
    recipe: Recipe
    shrinkage: float | None
    cache: str
    device: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the outcome, besides the latents."""
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in _SET_BY_FIT}
        if self.method == CLOSED_FORM:
            recipe = {k: v for k, v in recipe.items() if k in _SHARED}
        return {"method": self.method, "shrinkage": self.shrinkage, "recipe": recipe}


def plan(
    embeddings: list[str],
    translations: list[str],
    out: str,
    method: Method,
    recipe: dict[str, Any],
    shrinkage: float | None = None,
    cache: str | None = None,
    device: str | None = None,
) -> Training:
    """What to train; arguments as `train` takes them.

    Raises:
        TrainError: they do not fit together.
        GradientError: the recipe cannot be followed.
    """
    place = storage.normalize(out)
    if storage.is_remote(place):
        raise TrainError(f"{place}: checkpoints are written to a local directory: give one, or a mounted one")
    unknown = set(recipe) - ({f.name for f in fields(Recipe)} - _SET_BY_FIT)
    if unknown:
        raise TrainError(f"a recipe has no {', '.join(sorted(unknown))}")
    needless = sorted(set(recipe) - _SHARED)
    if method == CLOSED_FORM and needless:
        raise TrainError(f"{', '.join(needless)}: not for the closed form, which has no gradient descent")
    if method == "gradient" and shrinkage is not None:
        raise TrainError("a shrinkage is for the closed form: choose the method closed-form or both")
    chosen = Recipe(**recipe)
    chosen.check()
    if chosen.head not in heads.ALL:
        raise TrainError(f"no head {chosen.head}: choose {', '.join(heads.ALL)}")
    if method == "both" and chosen.head != heads.LINEAR:
        raise TrainError(f"a closed form starts a linear W, not {chosen.head}: choose the method gradient")
    where = cache or storage.join(place, "cache")
    return Training(
        data_sets(embeddings, EMBEDDINGS),
        data_sets(translations, TRANSLATIONS),
        place,
        method,
        chosen,
        shrinkage,
        where,
        device,
    )


def data_sets(uris: list[str], name: str) -> tuple[str, ...]:
    """The data sets themselves, also where the `--out` is given that they stand in."""
    places = [storage.normalize(uri) for uri in uris]
    inside = {uri: storage.join(uri, name) for uri in places if datasets.read_commit(uri) is None}
    return tuple(
        inside[uri] if uri in inside and datasets.read_commit(inside[uri]) else uri for uri in places
    )


def rank() -> int:
    """This process's number among those that `torchrun` has started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def fit(training: Training) -> dict[str, Any]:
    """Train, or go on where an earlier call was interrupted, or do nothing where it was not.

    Called by every process of `torchrun` alike; the first one writes the result and the report.

    Returns:
        The report, and whether it was there before (`resumed`); nothing but in the first process.

    Raises:
        TrainError: the directory belongs to a training with other arguments.
        PairsError, GradientError, ClosedFormError, DatasetError: nothing can be trained on these data.
    """
    first = rank() == 0
    tell = reporter() if first else silent
    started = time.monotonic()
    found = pairs.load(training.embeddings, training.translations, training.cache, tell)
    run_id = _claim(training, found, first)
    earlier = read_report(training.out)
    if earlier and earlier["run_id"] == run_id:
        return earlier | {"resumed": True}
    seconds = {"latents": time.monotonic() - started}
    transforms: dict[str, Transform] = {}
    if training.method != "gradient":
        if not first and training.method == CLOSED_FORM:
            return {}
        began = time.monotonic()
        transforms[CLOSED_FORM] = _closed_form(training, found, tell)
        seconds[CLOSED_FORM] = time.monotonic() - began
    if training.method != CLOSED_FORM:
        began = time.monotonic()
        transforms[training.method] = gradient.fit(
            found,
            training.recipe,
            Path(training.out, training.method),
            start=transforms.get(CLOSED_FORM),
            device=training.device,
            progress=tell,
        )
        seconds[training.method] = time.monotonic() - began
    return _finish(training, found, transforms, run_id, seconds) if first else {}


def _claim(training: Training, found: Pairs, first: bool) -> str:
    """The name of the run; TrainError where the directory holds what another one has made."""
    wanted = {"latents": found.digest, **training.identity}
    where = Path(training.out, PLAN)
    begun = [p for name in (WEIGHTS, "checkpoint.pt") for p in Path(training.out).glob(f"*/{name}")]
    held = json.loads(where.read_bytes()) if begun and where.exists() else wanted
    different = [name for name in ("latents", "method", "shrinkage") if held[name] != wanted[name]]
    old, new = held["recipe"], wanted["recipe"]
    different += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if different:
        raise TrainError(
            f"{training.out} holds a training with other {', '.join(different)} ({where} has them all): "
            f"choose another --out, or give what it was begun with"
        )
    if first:
        storage.write_bytes(str(where), json.dumps(wanted, indent=1).encode())
    return datasets.digest_of(wanted)


def _closed_form(training: Training, found: Pairs, tell: Progress) -> Transform:
    """The closed form, from its file where it is made already: of several processes one makes it."""
    place = Path(training.out, CLOSED_FORM)
    place.mkdir(parents=True, exist_ok=True)
    path, partial = place / WEIGHTS, place / f".{WEIGHTS}.partial"
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            recipe = training.recipe
            solved = closed_form.fit(
                found,
                recipe.dimensions,
                training.shrinkage,
                validation_share=recipe.validation_share,
                progress=tell,
            )
            solved.transform.save(partial)
            partial.replace(path)
    return load_transform(str(path))


def _finish(
    training: Training,
    found: Pairs,
    transforms: dict[str, Transform],
    run_id: str,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Put the result in its place, and write the report and the row of the run."""
    result = transforms[training.method]
    place = Path(training.out)
    shutil.copyfile(place / training.method / WEIGHTS, place / f".{WEIGHTS}.partial")
    (place / f".{WEIGHTS}.partial").replace(place / WEIGHTS)
    run = {
        "run_id": run_id,
        "config": {
            **training.identity,
            "embeddings": training.embeddings,
            "translations": training.translations,
        },
        "seconds": {stage: round(s, 2) for stage, s in seconds.items()},
        "versions": environment.versions(),
    }
    report = {
        **run,
        "W": str(place / WEIGHTS),
        "transform_id": result.transform_id,
        "transforms": {
            name: {"transform_id": w.transform_id, **w.metadata} for name, w in transforms.items()
        },
        "validation": _validation(training, found, transforms),
        "data": {
            **found.ids,
            "digest": found.digest,
            "latents": len(found.latents),
            "latent_size": found.latents.shape[1],
            "origins": len(found.origin_ids),
            "left_out": asdict(found.left_out),
        },
    }
    storage.write_bytes(str(place / REPORT), json.dumps(report, indent=1).encode())
    record_run(training.out, "train", run, {"listed": len(found.latents)})
    return report | {"resumed": False}


def _validation(training: Training, found: Pairs, transforms: dict[str, Transform]) -> dict[str, Any]:
    """mAP of raw latents and of every method on the held-out origins; nothing where none are."""
    held_out = found.held_out(training.recipe.validation_share)
    if not held_out.any():
        return {}
    trial = Trial.of(found, held_out)
    measured = {
        name: dict(zip(("mean_ap", "separation"), trial.score(w), strict=True))
        for name, w in {"raw": Transform(), **transforms}.items()
    }
    return {"origins": int(held_out.sum()), "queries": len(trial.queries), "methods": measured}


def read_report(out: str) -> dict[str, Any] | None:
    """report.json of a finished training, or None."""
    try:
        return dict(json.loads(storage.read_bytes(storage.join(out, REPORT))))
    except FileNotFoundError:
        return None


@task(**RETRY)
def train_transform(training: Training) -> dict[str, Any]:
    """Train; see `fit`."""
    return fit(training)


@flow(name="train", flow_run_name="train {out}", validate_parameters=True)
def train(
    embeddings: list[str],
    translations: list[str],
    out: str,
    method: Method = "gradient",
    recipe: dict[str, Any] | None = None,
    shrinkage: float | None = None,
    cache: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train W on the latents of originals and of their translations.

    Args:
        embeddings: data sets of `id2 embed` (or its `--out`), with the latents of originals and of
            translations.
        translations: data sets of `id2 translate` (or its `--out`): which translation is of which original.
        out: local directory of `W.safetensors`, `report.json`, and what training leaves to go on from.
        method: `gradient` (the paper's recipe), `closed-form`, or `both`: the latter as start of the former.
        recipe: what differs from the paper's, by the names of `recipe.Recipe`.
        shrinkage: of the closed form; by default chosen by validation.
        cache: local directory for the latents in the order of training, 2 bytes a number, which trainings
            on the same data share; by default `out`/cache.
        device: a torch device; by default the first GPU, or else the CPU.

    Returns:
        What report.json holds, and whether it was there before (`resumed`).
    """
    training = plan(embeddings, translations, out, method, recipe or {}, shrinkage, cache, device)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    # Others have left when one process fails: torchrun starts all of them again.
    work = train_transform if alone else train_transform.with_options(retries=0)
    return work(training)
