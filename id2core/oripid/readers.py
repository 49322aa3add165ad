"""Readers for public data sets: each gives references, queries and which query comes from which reference.

`PairSet` is the common form; `PairSet.write_truth` makes the truth file that `id2 scan --truth` takes.
Each reader says which facts about its data set are known, and which are assumed and so can be set.
Pictures are not decoded here: what cannot be decoded becomes a reject when it is embedded.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from id2core.encoders import images
from id2core.errors import ReaderError
from id2core.evaluation import truth_files
from id2core.evaluation.truth_files import Truth
from id2core.runs import parts
from id2core.store import storage, strict_json
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

# Folder names of the seven test models (paper, Section 3); the names are ours.
MODELS = ("sd2", "sdxl", "opendalle", "colorfulxl", "kandinsky3", "sd3", "kolors")
_SEED_IMAGES = ("source_image", "target_image")
_MISSING = Reject(Reason.VANISHED, "not below the images' folder")


class UnpairedReason(StrEnum):
    """Why a reader leaves a file or a line without a pair."""

    NAME = "name_does_not_fit"
    SAME_NAME = "same_name_twice"
    NO_ORIGIN = "origin_not_there"
    NO_QUERY = "query_not_there"
    NO_TRANSLATION = "no_translation_there"
    BAD_LINE = "bad_line"
    NOT_READ = "image_not_read"
    UNEDITED = "target_is_its_source"
    TARGET_IS_SOURCE = "target_is_a_source_of_others"
    SAME_TARGET = "same_target_twice"
    SAME_SOURCE = "same_source_twice"


_NO_ORIGIN = UnpairedReason.NO_ORIGIN


@dataclass(frozen=True)
class Unpaired:
    """A file (its URI), or a line of an annotation (`URI:LINE`), that is in no pair, why, and a detail."""

    uri: str
    reason: UnpairedReason
    detail: str = ""


@dataclass(frozen=True)
class PairSet:
    """Queries to search for among references.

    Attributes:
        references: URIs of the pool, origins and distractors alike.
        queries: URIs of the queries.
        truth: query URI → reference URI, or None for a query without origin; only of queries whose truth
            is known.
        prompts: query URI → the text by which it was edited, where the data set has it.
        unpaired: what was left out.
    """

    references: Sequence[str]
    queries: Sequence[str]
    truth: Truth
    prompts: Mapping[str, str] = field(default_factory=dict)
    unpaired: Sequence[Unpaired] = ()

    @property
    def unpaired_counts(self) -> dict[str, int]:
        """Return reason → files or lines that are in no pair for it."""
        return dict(sorted(Counter(str(each.reason) for each in self.unpaired).items()))

    def with_distractors(self, uris: Iterable[str]) -> PairSet:
        """Return the same queries with a larger pool; the paper adds 1,000,000 distractors to edits."""
        pool = dict.fromkeys([*self.references, *uris])
        return replace(self, references=list(pool))

    def write_truth(self, uri: str) -> None:
        """Write the truth as CSV `query_uri,reference_uri` with absolute URIs, for `truth.read`.

        Raises:
            ReaderError: a URI has a line break or blanks at its end, which a truth file cannot hold.
            StorageError: `uri` cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["query_uri", "reference_uri"])
        for query, origin in self.truth.items():
            writer.writerow([_writable(query), _writable(origin or "")])
        storage.write_bytes(storage.normalize(uri), text.getvalue().encode())


def _writable(uri: str) -> str:
    if uri != uri.strip() or "\n" in uri or "\r" in uri:
        raise ReaderError(f"{uri!r} has a line break or blanks at its end: rename the file")
    return uri


def read_folder(references: str, queries: str, truth_file: str) -> PairSet:
    """Read two folders of images and a truth file of this project's form (`evaluation.truth_files`).

    Queries that the file does not name stay in `queries` and out of `truth`. A row whose query or
    reference is not there is unpaired.

    Raises:
        TruthError: the file cannot be understood.
        StorageError: no such folder.
        ReaderError: no row of the file names files that are there.
    """
    references, queries, truth_file = map(storage.normalize, (references, queries, truth_file))
    rows = truth_files.read(truth_file, references, queries)
    pool, asked = ([uri for uri in _list(folder) if uri != truth_file] for folder in (references, queries))
    held, wanted = {None, *pool}, set(asked)
    truth: Truth = {q: r for q, r in rows.items() if q in wanted and r in held}
    unpaired = [
        Unpaired(
            query, UnpairedReason.NO_ORIGIN if query in wanted else UnpairedReason.NO_QUERY, origin or ""
        )
        for query, origin in rows.items()
        if query not in truth
    ]
    if not truth:
        raise ReaderError(f"no row of {truth_file} names files that are below {queries} and {references}")
    return PairSet(pool, asked, truth, unpaired=unpaired)


@dataclass(frozen=True)
class OripidLayout:
    """Where OriPID's files are and how they are named (data `WenhaoWang/OriPID`, paper Section 3).

    Known: the release's code takes everything before the underscore of `T000000_1` as the class; 20
    prompts and so 20 translations to each origin (paper); origins and references come from DISC21, which
    names them `T000000` and `R000000`; 5,000 queries for each of seven models, 1,000,000 references.
    Assumed, for the hub's own listing and card were not at hand: that index 0 is the origin and 1 to 20
    are its translations; the folders' names, but that of the features, and that these lie below the same
    root; that a query's name holds its origin's name. The prompts' file is not known and not read.
    Whatever turns out otherwise is set here, or goes through `read_folder` with a truth file.

    Attributes:
        training, references, features: folders below the root; `""` for the root itself.
        queries: the same, with `{model}` for the model's folder.
        training_name: regular expression of a whole name without its ending, groups `origin` and `index`.
        origin_index: the index that is the origin itself.
        reference_name, query_name: as training_name, with a group `origin`.
    """

    training: str = "training"
    references: str = "references"
    features: str = "sd2_d_multi_feature"
    queries: str = "queries/{model}"
    training_name: str = r"(?P<origin>T\d+)_(?P<index>\d+)"
    origin_index: int = 0
    reference_name: str = r"(?P<origin>R\d+)"
    query_name: str = r"(?:.*_)?(?P<origin>R\d+)(?:_.*)?"

    def label(self, uri: str) -> tuple[str, int] | None:
        """Return origin and index in the name of a training image or feature file; None without them."""
        match = re.fullmatch(self.training_name, _stem(uri))
        return (match["origin"], int(match["index"])) if match else None


DEFAULT_LAYOUT = OripidLayout()


class TrainingImage(NamedTuple):
    """A training image or feature file: its class, its number in it, where it is."""

    origin_id: str
    number: int
    uri: str


@dataclass(frozen=True)
class TrainingSet:
    """Training images sorted by class and number, and what was left out. Iterates over the images."""

    images: Sequence[TrainingImage]
    unpaired: Sequence[Unpaired] = ()
    origin_index: int = 0

    def __iter__(self) -> Iterator[TrainingImage]:
        return iter(self.images)

    def classes(self) -> Iterator[tuple[str, list[TrainingImage]]]:
        """Yield each origin's id with its images: the origin, where it exists, and its translations."""
        for origin_id, members in groupby(self.images, lambda image: image.origin_id):
            yield origin_id, list(members)

    def pairs(self) -> PairSet:
        """Translations as queries for their origins; those of a class without origin are unpaired."""
        origins = {i.origin_id: i.uri for i in self.images if i.number == self.origin_index}
        translations = [i for i in self.images if i.number != self.origin_index]
        truth: Truth = {i.uri: origins[i.origin_id] for i in translations if i.origin_id in origins}
        lost = [Unpaired(i.uri, _NO_ORIGIN, i.origin_id) for i in translations if i.uri not in truth]
        return PairSet(list(origins.values()), list(truth), truth, unpaired=[*self.unpaired, *lost])


def read_oripid_training(root: str, layout: OripidLayout = DEFAULT_LAYOUT) -> TrainingSet:
    """Read origins and translations by class, of images or of feature files.

    Everything is listed in memory: about 0.8 kB a file.

    Raises:
        StorageError: no such folder.
        ReaderError: no name fits the layout.
    """
    folder = storage.normalize(storage.join(root, layout.training))
    matches, unpaired = _named(folder, layout.training_name)
    by_label: dict[tuple[str, int], str] = {}
    for uri, match in matches:
        label = (match["origin"], int(match["index"]))
        if by_label.setdefault(label, uri) != uri:
            unpaired.append(Unpaired(uri, UnpairedReason.SAME_NAME, by_label[label]))
    labeled = [TrainingImage(*label, uri) for label, uri in sorted(by_label.items())]
    return TrainingSet(labeled, unpaired, layout.origin_index)


def read_oripid_references(root: str, layout: OripidLayout = DEFAULT_LAYOUT) -> dict[str, str]:
    """Return name → URI of every reference whose name fits; one call serves all models.

    Raises:
        StorageError: no such folder.
        ReaderError: no name fits, or two references have one name.
    """
    by_name: dict[str, str] = {}
    folder = storage.normalize(storage.join(root, layout.references))
    for uri, match in _named(folder, layout.reference_name)[0]:
        if by_name.setdefault(match["origin"], uri) != uri:
            raise ReaderError(f"{uri} and {by_name[match['origin']]} have one name: remove one of them")
    return by_name


def read_oripid_test(
    root: str, model: str, layout: OripidLayout = DEFAULT_LAYOUT, references: Mapping[str, str] | None = None
) -> PairSet:
    """Read the queries of one model, with all references.

    Args:
        root: folder or bucket prefix of the unpacked data set.
        model: one of `MODELS`, or the name of another folder of queries.
        layout: where files are and how they are named.
        references: what `read_oripid_references` gave, to list a million files once for seven models.

    Raises:
        StorageError: no such folder.
        ReaderError: no name fits the layout, or no query's origin is among the references.
    """
    pool = read_oripid_references(root, layout) if references is None else references
    folder = storage.normalize(storage.join(root, layout.queries.format(model=model)))
    matches, unpaired = _named(folder, layout.query_name)
    truth: Truth = {uri: pool[m["origin"]] for uri, m in matches if m["origin"] in pool}
    lost = [Unpaired(uri, UnpairedReason.NO_ORIGIN, m["origin"]) for uri, m in matches if uri not in truth]
    if not truth:
        raise ReaderError(f"{lost[0].detail}, the origin of {lost[0].uri}, is not among the references")
    return PairSet(list(pool.values()), list(truth), truth, unpaired=[*unpaired, *lost])


@dataclass(frozen=True)
class _Edit:
    """A line of the annotations: URIs of source and target, the request, and its place in the file."""

    source: str
    target: str
    instruction: str
    line: str


def read_seed_edits(
    root: str,
    annotations: str = "real_editing/annotations",
    images_folder: str = "real_editing/images",
    one_per_source: bool = True,
    max_bytes: int = images.DEFAULT_LIMITS.max_bytes,
) -> PairSet:
    """Read manual edits of SEED-Data-Edit, part 2: the target is the query, its source the reference.

    Known (`AILab-CVC/SEED-Data-Edit-Part2-3` on the hub): `real_editing/annotations/split_0001.jsonl` to
    `split_0006.jsonl`; `real_editing/images/images.tar.gz`, to be unpacked where it lies; a JSON object a
    line with `source_image`, `target_image` (paths below the images) and `instruction`. The paper
    (Section 5.4) de-duplicates 52,000 samples to 10,274 pairs and does not say how. Ours, by the SHA-256
    of the files' bytes, in the order of files and lines; a line is unpaired when

    - it is no such object, or one of its images is missing, too large or cannot be read;
    - its target has the bytes of its source (nothing was edited), or of a source of other lines (the
      query would find itself);
    - its target stood in an earlier pair (only the first request and source count);
    - `one_per_source`, and its source stood in an earlier pair.

    Copies that were compressed again are not found. References are the sources kept, one for each
    content; the paper's million distractors come by `with_distractors`.

    Raises:
        StorageError: no such folder.
        ReaderError: there are no annotations, or no pair is left.
    """
    base = storage.normalize(root)
    where, folder = storage.join(base, annotations), storage.join(base, images_folder)
    lines = list(_seed_lines(where, folder))
    if not lines:
        raise ReaderError(f"{where} has no lines in *.jsonl files; the annotations belong there")
    edits = [line for line in lines if isinstance(line, _Edit)]
    ids = _image_ids({uri for e in edits for uri in (e.source, e.target)}, folder, max_bytes)
    pairs = _deduplicate(edits, ids, one_per_source)
    unpaired = [*(line for line in lines if isinstance(line, Unpaired)), *pairs.unpaired]
    if not pairs.truth:
        raise ReaderError(
            f"no pair of {where} is left: {replace(pairs, unpaired=unpaired).unpaired_counts}. Is "
            f"images.tar.gz unpacked in {folder}? The first line without a pair is {unpaired[0].uri}: "
            f"{unpaired[0].detail}"
        )
    return replace(pairs, unpaired=unpaired)


def _seed_lines(annotations: str, folder: str) -> Iterator[_Edit | Unpaired]:
    for uri in _list(annotations):
        if uri.endswith(".jsonl"):
            for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
                if line.strip():
                    yield _seed_line(line, f"{uri}:{number}", folder)


def _seed_line(line: bytes, where: str, folder: str) -> _Edit | Unpaired:
    try:
        row = strict_json.parse_object(line)
        source, target = (storage.join(folder, row[name].lstrip("/")) for name in _SEED_IMAGES)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Unpaired(where, UnpairedReason.BAD_LINE, f"{type(error).__name__}: {error}")
    return _Edit(source, target, str(row.get("instruction") or ""), where)


def _image_ids(uris: set[str], folder: str, max_bytes: int) -> dict[str, str | Reject]:
    """Hash the `uris` that are listed below the folder: no path in an annotation leads elsewhere."""

    def image_id(obj: Object) -> str | Reject:
        data = storage.read_object(obj, max_bytes)
        return data if isinstance(data, Reject) else hashlib.sha256(data).hexdigest()

    objects = (o for o in storage.list_objects(folder) if o.uri in uris)
    return {obj.uri: image for obj, image in parts.read_ahead(objects, image_id, ahead=16)}


def _deduplicate(edits: list[_Edit], ids: dict[str, str | Reject], one_per_source: bool) -> PairSet:
    sources = {ids.get(e.source) for e in edits}
    references: dict[str, str] = {}
    targets: set[str] = set()
    truth: Truth = {}
    prompts, unpaired = {}, []
    for edit in edits:
        source, target = ids.get(edit.source, _MISSING), ids.get(edit.target, _MISSING)
        if isinstance(source, Reject) or isinstance(target, Reject):
            bad, why = (edit.source, source) if isinstance(source, Reject) else (edit.target, target)
            unpaired.append(Unpaired(edit.line, UnpairedReason.NOT_READ, f"{bad}: {why}"))
            continue
        reasons = {
            UnpairedReason.UNEDITED: source == target,
            UnpairedReason.TARGET_IS_SOURCE: target in sources,
            UnpairedReason.SAME_TARGET: target in targets,
            UnpairedReason.SAME_SOURCE: one_per_source and source in references,
        }
        if any(reasons.values()):
            first = next(reason for reason, holds in reasons.items() if holds)
            unpaired.append(Unpaired(edit.line, first, edit.target))
            continue
        targets.add(target)
        truth[edit.target] = references.setdefault(source, edit.source)
        prompts[edit.target] = edit.instruction
    return PairSet(list(references.values()), list(truth), truth, prompts, unpaired)


def _list(folder: str) -> list[str]:
    return [o.uri for o in storage.list_objects(folder)]


def _stem(uri: str) -> str:
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _named(folder: str, pattern: str) -> tuple[list[tuple[str, re.Match[str]]], list[Unpaired]]:
    """Return the files whose name without its ending fits, and the others; ReaderError when none fits."""
    compiled = re.compile(pattern)
    listed = [(uri, compiled.fullmatch(_stem(uri))) for uri in _list(folder)]
    fitting = [(uri, match) for uri, match in listed if match]
    if not fitting:
        first = f", for example {listed[0][0]}" if listed else ""
        raise ReaderError(
            f"none of {len(listed)} files below {folder} has a name like {pattern!r}{first}. Give an "
            "OripidLayout that fits, or use read_folder with a truth file"
        )
    return fitting, [Unpaired(uri, UnpairedReason.NAME) for uri, match in listed if not match]
