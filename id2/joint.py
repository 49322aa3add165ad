"""A measured joint calibration: the uploads of a calibration, scored by a second encoder, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2.channels import ChannelCorpora
from id2.results import ChannelShare, JointReport
from id2.searching import EmbeddedCorpora
from id2core.errors import CalibrationError
from id2core.evaluation.truth_files import Truth
from id2core.runs.progress import into_tally
from id2core.search import exact
from id2core.search.match_rows import CHANNEL
from id2core.store import storage
from id2core.transforms.files import load_transform
from id2core.transforms.linear import NONE
from id2core.verdicts import channel_facts, channels, judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.channels import Channels
from id2core.verdicts.normalization import normalize_matches


def check_shares(
    first: Calibration | None, second: ChannelCorpora, match: float, weights: tuple[float, float]
) -> None:
    """Raise CalibrationError where a calibration cannot take its share of a rate.

    Args:
        first: the calibration of the first channel; None where it is not made yet.
        second: the second channel.
        match: target rate of a match over both channels.
        weights: of the channels.
    """
    both = ((CHANNEL, first), (second.name, second.calibration))
    for (name, own), weight in zip(both, weights, strict=True):
        if own:
            channels.check_share(name, own, match, weight)


def scored(channel: ChannelCorpora, corpora: EmbeddedCorpora) -> pa.Table:
    """Return the best reference of each upload in a second channel, `schemas.MATCHES`.

    Raises:
        CalibrationError: the background is not that of the calibration, or shares pictures with the
            references.
    """
    how, references = channel.calibration.normalization, corpora.references.embeddings
    w = load_transform(NONE, channel.ids["encoder_id"])
    queries = corpora.queries.embeddings
    [matches] = exact.search(references, queries, [w], 1, progress=into_tally())
    if how is None or corpora.background is None:
        return matches
    background = corpora.background.embeddings
    judging.check_background_id(channel.calibration, background)
    judging.check_disjoint(background, references)
    [behind] = exact.search(background, queries, [w], how.k, is_background=True, progress=into_tally())
    return normalize_matches(matches, behind, how)


def calibrate(
    first: Calibration,
    second: ChannelCorpora,
    matches: Mapping[str, pa.Table],
    truth: Truth | None,
    sizes: Sequence[int],
    rates: tuple[float, float],
    weights: tuple[float, float],
    out: str,
) -> JointReport:
    """Make the joint calibration, write it, and say what it holds for.

    Args:
        first: the calibration of the first channel.
        second: the second channel.
        matches: name of a channel → its scores, as its calibration takes them.
        truth: which uploads have an origin; None where none has.
        sizes: references of each channel.
        rates: of `match` and of `review`, over both channels.
        weights: of the channels.
        out: the file.

    Raises:
        CalibrationError: there are too few uploads without origin, or a channel has no threshold at its
            share of the rate.
    """
    own = {CHANNEL: first, second.name: second.calibration}
    if truth is None:
        truth = {uri: None for table in matches.values() for uri in table["query_uri"].unique().to_pylist()}
    scores = channels.stranger_scores(matches, own, truth)
    _check_scored(scores, list(own))
    match, review = rates
    made = channels.measured(
        own, scores, max(sizes), match=match, review=review, weights=weights, sizes=sizes
    )
    made.save(out)
    return _report(Channels(made, tuple(own.values())), scores, sizes, out)


def _check_scored(scores: NDArray[np.float64], names: list[str]) -> None:
    """Raise CalibrationError where a channel has scored no upload: its rate would be that of the other."""
    for name, column in zip(names, scores.T, strict=True):
        if np.isnan(column).all():
            raise CalibrationError(
                f"the channel {name} has scored no upload without an origin: look at what its encoder has "
                "rejected, or at the --truth"
            )


def _report(both: Channels, scores: NDArray[np.float64], sizes: Sequence[int], out: str) -> JointReport:
    joint = both.joint
    assert joint.references is not None and joint.queries is not None  # it is measured
    reached = {level.value: channel_facts.reached(both, scores, level, sizes) for level in judging.LEVELS}
    return JointReport(
        calibration_id=joint.calibration_id,
        match=joint.match,
        review=joint.review,
        references=joint.references,
        queries=joint.queries,
        confidence=joint.confidence,
        channels={
            channel.name: ChannelShare(
                calibration_id=channel.calibration_id,
                encoder_id=channel.encoder_id,
                weight=channel.weight,
                scored=int((~np.isnan(scores[:, i])).sum()),
                thresholds={
                    level.value: channel_facts.finite(both.threshold(channel.name, level, sizes[i]))
                    for level in judging.LEVELS
                },
                reached={name: int(by[:, i].sum()) for name, by in reached.items()},
            )
            for i, channel in enumerate(joint.channels)
        },
        in_several={name: int((by.sum(axis=1) > 1).sum()) for name, by in reached.items()},
        out=storage.normalize(out),
    )
