"""Uploads as they come, by two encoders: what one verdict keeps of what each finds alone.

The first channel is the W that ships, under all views, less its background. The second is another encoder as
`id2 scan --also` takes it: raw latents of whole uploads, less a background of training photos. Both are
calibrated on the same uploads without origin, and the joint rule is measured on these (`verdicts.channels`).

Pictures by the second encoder are kept beside the latents of uploads, below its encoder_id, so a second run
encodes nothing, also after another W has come.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from id2core.encoders.base import Encoder
from id2core.encoders.registry import load_encoder
from id2core.errors import CalibrationError
from id2core.evaluation import bootstrap
from id2core.evaluation.metrics import RESAMPLES, Measure
from id2core.experiments import evaluation_sets, plots, upload_matchers, upload_tables, upload_views
from id2core.experiments.closed_sets import in_percent
from id2core.experiments.declaration import experiment
from id2core.experiments.evaluation_sets import DISTRACTORS, TEST, TRAIN
from id2core.experiments.methods import Methods
from id2core.experiments.results import Column, Result, Row, Skipped
from id2core.experiments.upload_edits import Edit, untouched
from id2core.experiments.upload_matchers import Background, Matcher, Whole
from id2core.experiments.upload_sets import COPY, TESTED, Sources, UploadSet
from id2core.experiments.upload_tables import MATCH, REVIEW
from id2core.experiments.upload_views import Viewed
from id2core.search.match_rows import CHANNEL
from id2core.store import storage
from id2core.transforms.files import load_transform
from id2core.transforms.linear import NONE
from id2core.verdicts import calibration, tails
from id2core.verdicts.calibration import Calibration, Verdict, clopper_pearson
from id2core.verdicts.channels import Channels, measured

# Not all edits: a second encoder may be slow.
ASKED = (
    "untouched",
    "mirrored",
    "crop-0.75-off-center",
    "crop-0.5-centered",
    "letterbox",
    "screenshot",
    "text",
    "quarter-turn",
    "collage",
)
ALL = "all"
# A file as it is, beside the edits.
ORIGINAL = Edit("original", 1, untouched)
# Of the second channel: photos, and how their scores are subtracted. Chosen for SSCD on validation photos.
_BACKGROUND, _FACTOR, _BEST = 600, 0.75, 10
# Originals that are encoded before they are kept.
_AT_ONCE = 512
# A ratio of fewer finds says nothing.
_FEW = 10
_CHANNELS = ("first", "second", "joint", "equal")
# Of the channels. On validation photos, any weight of W from 0.7 to 0.9 keeps all that one verdict of W and
# SSCD can keep there. The least of these leaves SSCD the lowest threshold.
_WEIGHTS = (0.7, 0.3)


@dataclass(eq=False)
class SecondSet(UploadSet):
    """The same uploads as another encoder sees them.

    Attributes:
        second: the encoder.
    """

    second: Encoder = field(kw_only=True)

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """Return encoder_id and preprocess_id of the latents."""
        preprocess_id = self.second.preprocess.preprocess_id
        return {"encoder_id": self.second.encoder_id, "preprocess_id": preprocess_id}

    @functools.cached_property
    def network(self) -> Encoder:
        """Return the encoder."""
        return self.second

    @functools.cached_property
    def references(self) -> NDArray[np.float16]:
        """Return the latents of the references, float16[R,n], in the order of the first encoder."""
        return np.concatenate([self.originals(role) for role in (TEST, DISTRACTORS)])

    def originals(self, role: str, most: int | None = None) -> NDArray[np.float16]:
        """Return the latents of photos of a role as they are, float16[N,n]; of `most` at equal distances."""
        uris, ids = self.data.uris(role), self.data.read(role)[1]
        count = len(uris)
        every = Sources(role, uris, ids, np.full(count, -1), np.arange(count))
        chosen = range(count) if most is None else np.linspace(0, count - 1, min(most, count)).astype(int)
        blocks = [chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE)]
        return np.concatenate([self.latents(ORIGINAL, every.take(list(rows)))[0] for rows in blocks])

    @property
    def latent_size(self) -> int:
        """Return n."""
        return self.second.latent_size

    def _file(self, edit: Edit, uri: str, image_id: str) -> bytes:
        return storage.read_bytes(uri) if edit is ORIGINAL else super()._file(edit, uri, image_id)


@dataclass(frozen=True, eq=False)
class Channel:
    """One encoder.

    Attributes:
        name: as in `matches/`.
        uploads: as it sees them.
        matcher: that scores them.
        transform_id: of its calibration.
    """

    name: str
    uploads: UploadSet
    matcher: Matcher
    transform_id: str

    @functools.cached_property
    def strangers(self) -> NDArray[np.float32]:
        """Return the scores of calibration uploads, one of each photo, float32[Q,R]."""
        parts = self.uploads.calibration(edited=True)
        return np.concatenate([self.matcher.scores(part) for part in parts])

    @functools.cached_property
    def calibration(self) -> Calibration:
        """Return the calibration of this channel alone.

        Raises:
            CalibrationError: there are too few strangers.
        """
        pairs = upload_matchers.best_pairs(self.strangers)
        return calibration.calibrate(
            pairs.best(),
            match=MATCH,
            review=REVIEW,
            references=self.strangers.shape[1],
            ids=self.uploads.ids | {"transform_id": self.transform_id},
            pairs=pairs,
        )

    def best(self, edit: Edit, kind: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the best scores with and without the origin, float32[2,Q], and whether it is first."""
        asked = self.uploads.of(edit, kind, TESTED)
        both = upload_matchers.with_and_without(self.matcher.scores(asked), asked.queries)
        count = len(asked.sources.uris)
        return both.scores[:, 0].reshape(2, count), both.ranks[:count] == 1


def first_channel(methods: Methods, uploads: UploadSet) -> Channel | None:
    """Return the W that ships under all views, normalized; None where none does."""
    built = upload_views.shipped_with_views(methods, uploads)
    matcher = next((one for one in built if isinstance(one, Viewed) and one.background), None)
    if matcher is None:
        return None
    deep = replace(matcher, depth=tails.DEPTH)
    return Channel(CHANNEL, uploads, deep, matcher.views.transform.transform_id)


def second_channel(spec: str, uploads: UploadSet) -> Channel:
    """Return cosines of whole uploads by another encoder, less a background of training photos.

    Raises:
        EncoderError: the encoder cannot be loaded.
    """
    network = load_encoder(spec)
    seconds = SecondSet(uploads.data, uploads.progress, second=network)
    identity = load_transform(NONE, network.encoder_id)
    plain = Whole(network.encoder_id, identity, identity.apply(seconds.references))
    name = network.encoder_id.rpartition("-")[0]
    return Channel(name, seconds, _less_background(plain, seconds), identity.transform_id)


def _less_background(plain: Whole, uploads: SecondSet) -> Whole:
    """Return the matcher less a background, where there are training photos for one."""
    if not uploads.data.has(TRAIN):
        return plain
    background = plain.transform.apply(uploads.originals(TRAIN, _BACKGROUND))
    if len(background) < _BEST:
        return plain
    return replace(plain, background=Background(background, _FACTOR, _BEST))


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Which uploads are a match, by each channel alone and by both.

    Attributes:
        found: first, second, joint or equal → bool[Q], whether the origin is first and reaches the threshold.
        false: the same → bool[Q], whether any reference does without the origin.
        photos: int64[Q].
    """

    found: Mapping[str, NDArray[np.bool_]]
    false: Mapping[str, NDArray[np.bool_]]
    photos: NDArray[np.int64]

    @classmethod
    def pool(cls, parts: Sequence[Verdicts]) -> Verdicts:
        """Return all of some."""
        found, false = (
            {name: np.concatenate([getattr(part, what)[name] for part in parts]) for name in _CHANNELS}
            for what in ("found", "false")
        )
        return cls(found, false, np.concatenate([part.photos for part in parts]))

    def row(self) -> Row:
        """Return what a row says of them."""
        photos = self.photos
        found = {name: evaluation_sets.mean(hits.astype(float), photos) for name, hits in self.found.items()}
        false = {name: evaluation_sets.mean(hits.astype(float), photos) for name, hits in self.false.items()}
        either = self.found["first"] | self.found["second"]
        return {
            "uploads": len(photos),
            **found,
            "of_better": self._of_better(),
            "either": int(either.sum()),
            "kept": self._kept("joint", either),
            "kept_equal": self._kept("equal", either),
            **{f"false_{name}": rate for name, rate in false.items()},
        }

    def _of_better(self) -> Measure:
        """Return how many origins one verdict finds for each of the better channel."""
        better = max((self.found["first"], self.found["second"]), key=np.sum)
        if better.sum() < _FEW:
            return Measure(None)
        sums = [np.bincount(self.photos, hits) for hits in (self.found["joint"], better)]

        def statistic(weights: NDArray[np.int64]) -> NDArray[np.float64]:
            joint, alone = (weights @ each for each in sums)
            ratios = np.divide(joint, alone, out=np.full(len(joint), np.nan), where=alone > 0)
            return np.asarray(ratios)[:, None]

        low, high = bootstrap.intervals(statistic, len(sums[0]), RESAMPLES, 0)[:, 0]
        return Measure(float(self.found["joint"].sum() / better.sum()), float(low), float(high))

    def _kept(self, rule: str, either: NDArray[np.bool_]) -> Measure:
        """Return the share that one verdict keeps of what either channel finds alone."""
        kept, photos = self.found[rule][either], self.photos[either]
        if not len(kept):
            return Measure(None)
        if len(np.unique(photos)) == len(photos):
            return Measure(float(kept.mean()), *clopper_pearson(int(kept.sum()), len(kept)))
        return evaluation_sets.mean(kept.astype(float), np.unique(photos, return_inverse=True)[1])


@dataclass(frozen=True, eq=False)
class Judge:
    """Thresholds of each channel alone and of both.

    Attributes:
        channels: first, second.
        both: the measured rule.
        equal: the same with equal weights.
    """

    channels: tuple[Channel, Channel]
    both: Channels
    equal: Channels

    @classmethod
    def of(cls, first: Channel, second: Channel) -> Judge:
        """Calibrate both channels and the joint rules on the same uploads without origin.

        Raises:
            CalibrationError: there are too few of them, or a channel has no threshold at its share.
        """
        own = {channel.name: channel.calibration for channel in (first, second)}
        best = np.column_stack([channel.strangers.max(axis=1) for channel in (first, second)])
        size = first.strangers.shape[1]
        both, equal = (
            Channels(
                measured(own, best, size, match=MATCH, review=REVIEW, weights=weights), tuple(own.values())
            )
            for weights in (_WEIGHTS, None)
        )
        return cls((first, second), both, equal)

    @functools.cached_property
    def thresholds(self) -> dict[str, NDArray[np.float64]]:
        """Return first, second, joint or equal → the score of each channel that is a match, float64[2]."""
        alone = [channel.calibration.match.score for channel in self.channels]
        size = self.channels[0].strangers.shape[1]
        joint, equal = (
            [rule.threshold(channel.name, Verdict.MATCH, size) for channel in self.channels]
            for rule in (self.both, self.equal)
        )
        limits = ([alone[0], np.inf], [np.inf, alone[1]], joint, equal)
        return {name: np.array(limit) for name, limit in zip(_CHANNELS, limits, strict=True)}

    def judge(self, edit: Edit, kind: str) -> Verdicts:
        """Judge the test uploads of an edit and a kind."""
        scored = [channel.best(edit, kind) for channel in self.channels]
        own, other = (np.column_stack([best[i] for best, _ in scored]) for i in (0, 1))
        is_first = np.column_stack([first for _, first in scored])
        limits = self.thresholds.items()
        return Verdicts(
            {name: np.asarray(((own >= limit) & is_first).any(axis=1)) for name, limit in limits},
            {name: np.asarray((other >= limit).any(axis=1)) for name, limit in limits},
            self.channels[0].uploads.sources(kind, TESTED).photos,
        )


@experiment("uploads-two", "Uploads as they come: two encoders, one verdict", place=107)
def two(methods: Methods) -> Result | Skipped:
    """Measure what one verdict of two encoders finds at a stated rate, beside each of them alone."""
    started = time.monotonic()
    if methods.also is None:
        return Skipped("no second encoder was given (`--also`)")
    uploads = UploadSet(methods.data, methods.progress)
    if reason := uploads.missing():
        return Skipped(reason)
    first = first_channel(methods, uploads)
    if first is None:
        return Skipped(f"no W with views ships for {uploads.ids['encoder_id']}")
    try:
        judge = Judge.of(first, second_channel(methods.also, uploads))
    except CalibrationError as error:
        return Skipped(str(error))
    rows = measure(judge, [edit for edit in uploads.edits if edit.name in ASKED])
    second = judge.channels[1].name
    return Result(
        rows,
        upload_tables.described(uploads),
        time.monotonic() - started,
        (
            Column("kind", merge=True),
            Column("edit"),
            Column("first", "W alone %", percent=True),
            Column("second", f"{second} alone %", percent=True),
            Column("joint", "one verdict %", percent=True),
            Column("of_better", "of the better %", percent=True),
            Column("either", "of either"),
            Column("kept", "kept %", percent=True),
            Column("kept_equal", "kept with equal weights %", percent=True),
            Column("false_first", "false: W %", percent=True),
            Column("false_second", f"false: {second} %", percent=True),
            Column("false_joint", "false: one verdict %", percent=True),
        ),
        _plot(rows, second),
        list(_notes(judge, uploads)),
        {
            "calibrations": {c.name: c.calibration.model_dump(mode="json") for c in judge.channels},
            "joint": judge.both.joint.model_dump(mode="json"),
            "equal": judge.equal.joint.model_dump(mode="json"),
            "thresholds": {
                name: [float(x) if np.isfinite(x) else None for x in limit]
                for name, limit in judge.thresholds.items()
            },
        },
    )


def measure(judge: Judge, edits: Sequence[Edit]) -> list[Row]:
    """Return a row of each kind and edit, of each kind, and of all."""
    rows: list[Row] = []
    every: list[Verdicts] = []
    for kind in judge.channels[0].uploads.kinds:
        parts = {edit.name: judge.judge(edit, kind) for edit in edits}
        rows += [{"kind": kind, "edit": name} | part.row() for name, part in parts.items()]
        rows.append({"kind": kind, "edit": ALL} | Verdicts.pool(list(parts.values())).row())
        every += parts.values()
    rows.append({"kind": ALL, "edit": ALL} | Verdicts.pool(every).row())
    return rows


def _plot(rows: Sequence[Row], second: str) -> plots.Bars:
    copies = [row for row in rows if row["kind"] == COPY]
    names = {"first": "W alone", "second": f"{second} alone", "joint": "one verdict"}
    values, low, high = in_percent({name: [row[key] for row in copies] for key, name in names.items()})
    label = f"origins of copies found at a stated rate of {MATCH:.0%}, %"
    return plots.Bars([row["edit"] for row in copies], values, label, low, high)


def _notes(judge: Judge, uploads: UploadSet) -> Iterator[str]:
    second, joint = judge.channels[1], judge.both.joint
    yield (
        "W is the one that ships, under all views, normalized. "
        f"{second.name} is `{second.uploads.ids['encoder_id']}`: raw latents of whole uploads, "
        f"{_normalized(second.matcher)}."
    )
    low, high = (100 * x for x in (joint.match.low or 0, joint.match.high or 0))
    yield (
        "Found means that the origin is first in a channel and reaches its threshold at a rate of "
        f"{MATCH:.0%}. All thresholds come from {joint.queries} uploads of other photos without origin, one "
        f"of each photo, with one of {len(uploads.edits)} edits in turn. The one verdict follows the "
        f"measured rule: τ = {100 * joint.match.statistic:.2f}%, and it states {MATCH:.0%} with a 95% "
        f"interval of {low:.2f} to {high:.2f}%. The weight of W is {_WEIGHTS[0]:g}, that of {second.name} "
        f"{_WEIGHTS[1]:g}, as was chosen for SSCD on validation photos."
    )
    held = judge.thresholds
    alone, both, equal = np.minimum(held["first"], held["second"]), held["joint"], held["equal"]
    yield (
        f"Thresholds of W and of {second.name}: {alone[0]:.3f} and {alone[1]:.3f} alone, {both[0]:.3f} and "
        f"{both[1]:.3f} together, {equal[0]:.3f} and {equal[1]:.3f} together with equal weights."
    )
    hits = np.column_stack(
        [channel.strangers.max(axis=1) >= channel.calibration.match.score for channel in judge.channels]
    )
    yield (
        f"Of the uploads that thresholds come from, {hits[:, 0].mean():.2%} reach that of W alone, "
        f"{hits[:, 1].mean():.2%} that of {second.name} alone, and {hits.all(axis=1).mean():.2%} both."
    )
    yield (
        "“Of the better” is what one verdict finds, divided by what the better of both channels finds "
        f"alone; fewer than {_FEW} finds give none. “Of either” counts what W alone or {second.name} alone "
        "finds, and “kept” is the share of these that one verdict finds. “False” is the rate measured on "
        "the same uploads without their origin."
    )


def _normalized(matcher: Matcher) -> str:
    held = matcher.background if isinstance(matcher, Whole) else None
    if held is None:
        return "not normalized"
    return (
        f"less {held.factor:g} × the mean of the {held.k} best scores among {len(held.descriptors)} training "
        "photos"
    )
