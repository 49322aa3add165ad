"""A second channel: another encoder beside the first, and one verdict of both.

The corpora of the channel are in OUT/channels/NAME. In a scan, its pairs are in the same `matches/` as those
of the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from id2.corpora import Corpus, CorpusPair, check_made_with, embed_corpora
from id2.requests import ChannelCorporaRequest, ChannelRequest, SearchRequest
from id2.searching import EmbeddedCorpora, Searcher
from id2core.defaults import UNION
from id2core.encoders.embed_job import EmbedJob, Feed
from id2core.errors import CalibrationError, DatasetError, OptionError
from id2core.reports.facts import ScanSummary
from id2core.reports.inputs import FurtherChannel, ReportInputs
from id2core.runs import channel_datasets, leftovers
from id2core.runs.records import Recorder
from id2core.search.indexes import FLAT
from id2core.search.match_rows import CHANNEL
from id2core.settings import Settings
from id2core.store import schemas, storage
from id2core.transforms.linear import NONE
from id2core.verdicts import calibration, channel_facts, channels, judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.channels import Channels, JointCalibration


def check_same(out: str, name: str | None) -> None:
    """Raise DatasetError where an `--out` has another second channel than a scan asks for.

    Args:
        out: a normalized place.
        name: of the second channel; None for none.
    """
    if others := set(leftovers.channels(out)) - {name}:
        raise DatasetError(
            f"{out} has a second channel, {min(others)}: give it with --also, as before. Its pairs have the "
            "verdict of both channels, so it cannot be left out or exchanged there. Use another --out for "
            "that. A scan takes what is embedded: "
            f"--reference dataset:{out}/reference --queries dataset:{out}/queries"
        )


def searched_corpora(out: str, summary: ScanSummary | None) -> dict[str, tuple[str, str]]:
    """Return where the embeddings of references and of uploads are, by channel, the first first.

    Args:
        out: a normalized place.
        summary: of its last scan, which says so; without one, they are where scans put them.

    Raises:
        DatasetError: the file that says where corpora of a further channel are is damaged.
    """
    known = summary.inputs if summary else None
    own = known.channels if known else {}
    first = (
        (known.reference_embeddings, known.query_embeddings)
        if known
        else (
            storage.join(out, "reference", schemas.EMBEDDINGS),
            storage.join(out, "queries", schemas.EMBEDDINGS),
        )
    )
    further = {
        name: (own[name].reference_embeddings, own[name].query_embeddings)
        if name in own
        else channel_datasets.find(out, name).both
        for name in leftovers.channels(out)
    }
    return {CHANNEL: first} | further


@dataclass(frozen=True)
class ChannelCorpora:
    """The corpora of a second channel, and the calibration of its scores.

    Attributes:
        name: the `channel` of its rows in `matches/`.
        settings: of the command, with the encoder of the channel.
        ids: `schemas.ROW_IDS` of its descriptors.
        out: the `--out` of the command.
        beam: Beam's arguments.
        background: of the channel, where its calibration has one.
        calibration: of the channel.
        corpora: its references and uploads, where they are not the images of the first channel.
    """

    name: str
    settings: Settings
    ids: dict[str, str]
    out: str
    beam: list[str]
    background: Corpus | None
    calibration: Calibration
    corpora: Mapping[str, Corpus]

    @staticmethod
    def open_corpora(request: ChannelRequest, out: str, first_encoder_id: str) -> ChannelCorpora:
        """Load what the channel needs, and check that it fits.

        Args:
            request: of the command, with `also`.
            out: a normalized place.
            first_encoder_id: encoder of the first channel.

        Raises:
            CalibrationError: the calibration is missing or damaged, or is for other scores.
            DatasetError: there is no background, or a data set is of another encoder.
            EncoderError: the encoder cannot be loaded.
            OptionError: the channel would have the name of the first.
        """
        update = {"encoder": request.also, "transform": NONE, "views": NONE, "index": FLAT}
        settings = request.settings().model_copy(update=update | {"calibration": request.also_calibration})
        given = request.also_background
        background = Corpus.open("background", given) if given else None
        ids = EmbedJob(".", ".", settings.encoder, NONE).identify()
        name = _name_of(ids["encoder_id"], first_encoder_id)
        own = calibration.load(str(request.also_calibration))
        own.check_ids(ids)
        if own.views != NONE:
            raise CalibrationError(
                f"{name} is searched without views, and its calibration is for scores with them: calibrate "
                "with --views none"
            )
        _check_background(name, own, background)
        corpora = _corpora_of(request, ids)
        return ChannelCorpora(name, settings, ids, out, request.beam, background, own, corpora)

    @property
    def folder(self) -> str:
        """Where the corpora of the channel are, below the `--out`."""
        return f"{leftovers.CHANNELS}/{self.name}"

    @property
    def place(self) -> str:
        """Parent of the corpora of the channel."""
        return leftovers.channel_place(self.out, self.name)

    def of_pair(self, pair: CorpusPair) -> list[Corpus]:
        """Return the references and the uploads of the channel, which may be those of the first."""
        return [self.corpora.get(corpus.name, corpus) for corpus in (pair.reference, pair.queries)]

    def check_sources(self, pair: CorpusPair) -> None:
        """Raise DatasetError where the channel would not see the pictures of the first.

        Args:
            pair: the corpora of the first channel.
        """
        for first, own in zip((pair.reference, pair.queries), self.of_pair(pair), strict=True):
            if first.sources and own.sources and set(first.sources) != set(own.sources):
                raise DatasetError(
                    f"--also-{own.name} {own.spelled} has pictures of {', '.join(own.sources)}, and "
                    f"--{first.name} {first.spelled} those of {', '.join(first.sources)}: both channels have "
                    "to see the same"
                )

    def embed(self, pair: CorpusPair, feeds: Sequence[Feed], recorder: Recorder) -> EmbeddedCorpora:
        """Embed both corpora, and the background where there is one; a data set is taken as it is.

        Args:
            pair: the corpora of the command.
            feeds: what is said of the sources of references and uploads.
            recorder: of the run.
        """
        own = self.of_pair(pair)
        elsewhere = {corpus.name: corpus.dataset.uri for corpus in own if corpus.dataset}
        channel_datasets.keep(self.out, self.name, elsewhere)
        asked = list(zip(own, feeds, strict=True))
        if self.background:
            asked.append((self.background, {}))
        references, queries, *background = embed_corpora(
            asked, self.place, self.settings, self.beam, recorder, self.out
        )
        return EmbeddedCorpora(references, queries, background[0] if background else None)


@dataclass(frozen=True)
class SecondChannel(ChannelCorpora):
    """The second channel of a scan.

    Attributes:
        joint: the rule, with both calibrations.
        joint_spec: how the rule was asked for.
    """

    joint: Channels
    joint_spec: str

    @staticmethod
    def open(request: SearchRequest, out: str, first: Calibration | None) -> SecondChannel:
        """Load what the channel needs, and check that it fits.

        Args:
            request: of the scan, with `also`.
            out: a normalized place.
            first: the calibration of the first channel.

        Raises:
            CalibrationError: a calibration is missing or damaged, is for other scores, or has no threshold at
                its share of the rate.
            DatasetError: there is no background, or `out` has another second channel.
            EncoderError: the encoder cannot be loaded.
            OptionError: the channel would have the name of the first.
        """
        if first is None:
            raise CalibrationError("two channels give one verdict only by calibrations: give --calibration")
        own = ChannelCorpora.open_corpora(request, out, first.encoder_id)
        check_same(out, own.name)
        spec = request.joint_rule
        joint = Channels(
            joint_of(spec, {CHANNEL: first, own.name: own.calibration}), (first, own.calibration)
        )
        held = {field.name: getattr(own, field.name) for field in fields(own)}
        return SecondChannel(**held, joint=joint, joint_spec=spec)

    def searcher(self, keep_all: bool = False) -> Searcher:
        """Return what compares the uploads of the channel with its references.

        Args:
            keep_all: whether every pair is stored, also below the floor.
        """
        return Searcher(
            self.out,
            self.settings,
            self.ids,
            self.calibration,
            self.beam,
            keep_all,
            channel=self.name,
            joint=self.joint,
            place=self.place,
        )

    def reported(
        self, inputs: ReportInputs, corpora: EmbeddedCorpora, first: EmbeddedCorpora, spec: str
    ) -> ReportInputs:
        """Add the channel to what a report is made from.

        Args:
            inputs: of the first channel.
            corpora, first: of this channel and of the first.
            spec: how the calibration of the first was asked for.
        """
        specs, both = (spec, self.settings.calibration), (first, corpora)
        own = [
            judging.facts(
                chosen,
                asked,
                held.references.embeddings.rows,
                held.background.embeddings.uri if held.background else None,
            )
            for chosen, asked, held in zip(self.joint.calibrations, specs, both, strict=True)
        ]
        rows = max(held.references.embeddings.rows for held in both)
        joint = channel_facts.facts(self.joint, self.joint_spec, rows, [one for one in own if one])
        channel = FurtherChannel(
            self.name,
            corpora.references.embeddings,
            corpora.queries.embeddings,
            corpora.references.rejects,
            corpora.queries.rejects,
        )
        return replace(inputs, run=inputs.run.model_copy(update={"joint": joint}), channels=(channel,))


def _corpora_of(request: ChannelRequest, ids: dict[str, str]) -> dict[str, Corpus]:
    """Open the corpora that are given for the second channel alone.

    Raises:
        DatasetError: a data set is of another encoder.
    """
    if not isinstance(request, ChannelCorporaRequest):
        return {}
    corpora = {name: Corpus.open(name, uri) for name, uri in request.also_corpora.items()}
    for corpus in corpora.values():
        if corpus.dataset:
            check_made_with(corpus.dataset, ids, NONE)
    return corpora


def _name_of(encoder_id: str, first_encoder_id: str) -> str:
    """Return the name of a channel: that of its encoder, as a folder may be called."""
    if encoder_id == first_encoder_id:
        raise OptionError(
            f"--also is the encoder of the first channel itself ({encoder_id}): give another one"
        )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", encoder_id.rpartition("-")[0]).strip("-.")
    if name in ("", CHANNEL):
        raise OptionError(f"--also is called {encoder_id}, which names no channel: rename its file or folder")
    return name


def _check_background(name: str, own: Calibration, background: Corpus | None) -> None:
    if own.normalization and background is None:
        raise CalibrationError(
            f"the calibration of {name} is for scores normalized by a background corpus: give it with "
            "--also-background"
        )
    if background and own.normalization is None:
        raise CalibrationError(f"the calibration of {name} uses no background: leave --also-background out")
    if background and background.dataset:
        judging.check_background_id(own, background.dataset)


def joint_of(spec: str, own: dict[str, Calibration]) -> JointCalibration:
    """Return the joint calibration: of a file, or the union bound at the rates of the first channel.

    Args:
        spec: as of `--joint-calibration`.
        own: name of a channel → its calibration, the first first.

    Raises:
        CalibrationError: the file is missing, damaged, or of other channels; or a calibration has no
            threshold at its share of the rate.
    """
    if spec == UNION:
        first = own[CHANNEL]
        return channels.union(own, match=first.match.target, review=first.review.target)
    joint = channels.load(storage.normalize(spec))
    names = [channel.name for channel in joint.channels]
    if names != list(own):
        raise CalibrationError(
            f"{spec} is a joint calibration of the channels {', '.join(names)}, and these are "
            f"{', '.join(own)}"
        )
    return joint
