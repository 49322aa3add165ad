"""Where the prompts of a translation run come from: a file, captions beside the images, or an endpoint.

The paper's prompts were written by a vision-language model, 20 for each training image and one for each
test image (Section 3, Appendix B). Any other source that names prompts per image does as well.
"""

from __future__ import annotations

import functools
import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from PIL import Image

from id2core.errors import PromptError
from id2core.evaluation import truth_files
from id2core.store import datasets, storage
from id2core.store.rejects import Reason, Reject

__all__ = ["PromptError", "PromptSource", "load"]

T = TypeVar("T")

CAPTIONS, ENDPOINT, EMPTY = "captions", "endpoint", "empty"
COLUMNS: Final = (("uri", "prompt"), ("file", "caption"))
CAPTION_FILES: Final = ("captions.csv", "captions.parquet")
OPTIONS: Final = (
    "give prompts as a CSV, Parquet or JSON lines file with columns uri and prompt; as a .txt file with "
    f"one prompt per line; as `{ENDPOINT}`, a vision-language model named by ID2_PROMPT_BASE_URL and "
    f"ID2_PROMPT_MODEL; as `{CAPTIONS}`, a captions.csv with columns file and caption in or beside the "
    f"images folder; or as `{EMPTY}`, to translate without words"
)


class PromptSource(Protocol):
    """Prompts for any image of a run. Can be pickled; opens files and connections where it is used."""

    @property
    def identity(self) -> str:
        """Hash of all that decides the prompts: a part of the run's id."""

    @property
    def place(self) -> str:
        """Return what names the source: data sets made from different ones are not mixed."""

    @property
    def uri(self) -> str:
        """Return the URI of the file, which is no image where it lies among them; empty without a file."""

    @property
    def concurrency(self) -> int:
        """Return how many threads may ask at a time."""

    def prompts_for(
        self, image_id: str, uri: str, picture: bytes | Image.Image, count: int
    ) -> list[str] | Reject:
        """Return prompts for one image.

        Args:
            image_id, uri: of the image.
            picture: the whole file, or a loaded picture.
            count: how many prompts are wanted, at least 1.

        Returns:
            1 to `count` different prompts, or why there is none. The prompts of a smaller count are the
            beginning of those of a larger one, and no other image has a say in them.

        Raises:
            PromptError: there will be prompts for no image at all.
        """


def load(spec: str | None, images_uri: str, out_uri: str) -> PromptSource:
    """Open the source of prompts that a user named.

    Args:
        spec: a file (`.csv`, `.parquet`, `.jsonl`, `.ndjson` or `.txt`); `captions`; `endpoint`; `empty`; or
            None for captions, if there are any.
        images_uri: folder of the images; relative URIs in a file are taken below it.
        out_uri: the run's output; the answers of an endpoint are stored in `_prompts/` below it.

    Raises:
        PromptError: there is no such source, it cannot be understood, or it holds no prompt.
        StorageError: a file that cannot be read.
    """
    images = storage.normalize(images_uri)
    if spec == EMPTY:
        return EmptyPrompt()
    if spec == ENDPOINT:
        from id2core.translation import prompt_service  # httpx and tenacity: of the extra `translate`

        return prompt_service.connect(storage.normalize(out_uri))
    file = _find_captions(images) if spec is None or spec == CAPTIONS else storage.normalize(spec)
    return _from_file(file, images)


@dataclass(frozen=True)
class EmptyPrompt:
    """The empty prompt for every image."""

    identity: str = EMPTY
    place: str = EMPTY
    uri: str = ""
    concurrency: int = 1

    def prompts_for(
        self, image_id: str, uri: str, picture: bytes | Image.Image, count: int
    ) -> list[str] | Reject:
        """Return one empty prompt for any `count`."""
        return [""]


@dataclass(frozen=True)
class TablePrompts:
    """Prompts by image, from a file with a row for each.

    Attributes:
        uri: the file.
        images: folder of the images.
        digest: SHA-256 of the file, hex.
    """

    uri: str
    images: str
    digest: str
    concurrency: int = 1

    @property
    def identity(self) -> str:
        """Hash of the file's bytes."""
        return datasets.digest_of("table", self.digest)

    @property
    def place(self) -> str:
        """Return the file, which may grow from run to run."""
        return self.uri

    def prompts_for(
        self, image_id: str, uri: str, picture: bytes | Image.Image, count: int
    ) -> list[str] | Reject:
        """Return the first `count` prompts of the file for `uri`, in the file's order."""
        prompts = _loaded(_table, self.uri, self.digest, self.images).prompts(uri)[:count]
        return prompts or Reject(Reason.NO_PROMPT, f"{self.uri} has no prompt for it")


@dataclass(frozen=True)
class LinePrompts:
    """A list of prompts for all images.

    Attributes:
        uri: a text file, UTF-8, one prompt per line.
        digest: SHA-256 of the file, hex.
    """

    uri: str
    digest: str
    concurrency: int = 1

    @property
    def identity(self) -> str:
        """Hash of the file's bytes."""
        return datasets.digest_of("lines", self.digest)

    @property
    def place(self) -> str:
        """Return a name of the file and its content: with another line, an image draws other lines."""
        return f"{self.uri} {self.digest}"

    def prompts_for(
        self, image_id: str, uri: str, picture: bytes | Image.Image, count: int
    ) -> list[str] | Reject:
        """Draw `count` different lines (or all, if there are fewer) by a hash of `image_id`."""
        lines = _loaded(_lines, self.uri, self.digest)
        drawn: list[int] = []
        for index in range(min(count, len(lines))):
            line = int(datasets.digest_of(image_id, index), 16) % len(lines)
            while line in drawn:
                line = (line + 1) % len(lines)
            drawn.append(line)
        return [lines[line] for line in drawn]


def _find_captions(images: str) -> str:
    folders = (images, images.rsplit("/", 1)[0])
    places = [storage.join(folder, name) for folder in folders for name in CAPTION_FILES]
    for place in places:
        if storage.exists(place):
            return place
    raise PromptError(f"no captions at {' or '.join(places)}: {OPTIONS}")


def _from_file(uri: str, images: str) -> PromptSource:
    digest = hashlib.sha256(_bytes(uri)).hexdigest()
    if uri.endswith(".txt"):
        _loaded(_lines, uri, digest)
        return LinePrompts(uri, digest)
    _loaded(_table, uri, digest, images)
    return TablePrompts(uri, images, digest)


# Once per process: every copy of a source that a worker unpickles shares what was read.
_LOADING: Final = threading.Lock()


def _loaded(read: Callable[..., T], *args: str) -> T:
    with _LOADING:
        return read(*args)


@functools.lru_cache(maxsize=2)
def _lines(uri: str, digest: str) -> list[str]:
    try:
        text = _bytes(uri, digest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{uri} is not a text in UTF-8: {error}") from error
    lines = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
    lines.pop("", None)
    if not lines:
        raise PromptError(f"{uri} holds no prompt")
    return list(lines)


class _Table:
    """Prompts by image. They stay in Arrow: the paper's two million take little more than their file."""

    def __init__(self, rows: pa.Table, images: str) -> None:
        # Without threads, which would mix the order of an image's prompts.
        groups = rows.group_by("image", use_threads=False).aggregate([("prompt", "list")])
        self._prompts = groups["prompt_list"].combine_chunks()
        self._groups: dict[str, list[int]] = {}
        for group, image in enumerate(groups["image"].to_pylist()):
            self._groups.setdefault(truth_files.absolute(image, images), []).append(group)

    def prompts(self, uri: str) -> list[str]:
        """Return the different prompts of an image, in the file's order."""
        texts = [text for group in self._groups.get(uri, ()) for text in self._prompts[group].as_py()]
        return list(dict.fromkeys(" ".join(text.split()) for text in texts))


@functools.lru_cache(maxsize=2)
def _table(uri: str, digest: str, images: str) -> _Table:
    rows = _rows(uri, _bytes(uri, digest))
    if pc.any(pc.equal(rows["image"], "")).as_py():
        raise PromptError(f"{uri} has a row that names no image")
    rows = rows.filter(pc.not_equal(rows["prompt"], ""))
    if not len(rows):
        raise PromptError(f"{uri} holds no prompt")
    return _Table(rows, images)


def _bytes(uri: str, digest: str | None = None) -> bytes:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise PromptError(f"{uri}: no such file; {OPTIONS}") from error
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise PromptError(f"{uri} was changed while a run used it: start the run again")
    return data


def _rows(uri: str, data: bytes) -> pa.Table:
    """Return the columns image and prompt as stripped strings; null becomes empty."""
    read = _READERS.get(uri.rsplit(".", 1)[-1].lower())
    if not read:
        raise PromptError(f"{uri}: the name must end in .txt, .{', .'.join(_READERS)}; {OPTIONS}")
    try:
        table = read(io.BytesIO(data))
        for columns in COLUMNS:
            if set(columns) <= set(table.column_names):
                texts = [pc.fill_null(table[c].cast(pa.string()), "") for c in columns]
                return pa.table([pc.utf8_trim_whitespace(t) for t in texts], names=["image", "prompt"])
    except pa.ArrowException as error:
        raise PromptError(f"{uri} cannot be read as what its name says: {error}") from error
    raise PromptError(f"{uri} has columns {table.column_names}; expected uri and prompt, or file and caption")


def _csv(file: io.BytesIO) -> pa.Table:
    text = {name: pa.string() for pair in COLUMNS for name in pair}
    return pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=text),
    )


_READERS: Final[dict[str, Callable[[io.BytesIO], Any]]] = {
    "csv": _csv,
    "parquet": pq.read_table,
    "jsonl": pa.json.read_json,
    "ndjson": pa.json.read_json,
}
