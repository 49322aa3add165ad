"""Recorded ids of encoders: which weights a directory, file or revision holds, without loading them.

The bundled encoder's record is a file in the package. The others are written to the user's cache folder when
an encoder is loaded, named by what its weights are known by: a local path with the sizes and times of its
files, or a commit of a hub repository. A record is a shortcut: without one, the encoder is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from id2core.encoders.hub import MINI, is_short_name, locate
from id2core.encoders.preprocess import Preprocess
from id2core.errors import EncoderError, StorageError
from id2core.store import storage, strict_json
from id2core.store.datasets import digest_of
from id2core.transforms.files import BUNDLED_FOLDER

BUNDLED_RECORD = BUNDLED_FOLDER / "encoder.json"
# Changes with what a hash is made of, so that old records are not found.
_VERSION = 2
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class EncoderIds:
    """What the rows of an encoder are known by."""

    encoder_id: str
    preprocess_id: str


@dataclass(frozen=True)
class Record:
    """The ids of an encoder, what its second id is made of, and the size of its latents.

    `preprocess_id` also names how files are decoded, which this program decides and not the encoder: it is
    computed anew.
    """

    encoder_id: str
    preprocess: Preprocess
    latent_size: int

    @property
    def ids(self) -> EncoderIds:
        """Return the ids as columns of a row."""
        return EncoderIds(self.encoder_id, self.preprocess.preprocess_id)

    def to_json(self) -> bytes:
        """Return the content of a record's file."""
        facts = {"encoder_id": self.encoder_id, "latent_size": self.latent_size}
        raw = facts | asdict(self.preprocess)
        return json.dumps(raw | {"checksum": digest_of(raw)}, indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> Record:
        """Return the record in a file. Raises ValueError, LookupError or TypeError where it is damaged."""
        raw = strict_json.parse_object(data)
        if raw.pop("checksum", None) not in (None, digest_of(raw)):
            raise ValueError("its content does not fit its checksum")
        (r, g, b), (sr, sg, sb) = raw["mean"], raw["std"]
        scaling = ((float(r), float(g), float(b)), (float(sr), float(sg), float(sb)))
        preprocess = Preprocess(int(raw["size"]), *scaling)
        return Record(str(raw["encoder_id"]), preprocess, int(raw["latent_size"]))


def find(spec: str) -> Record | None:
    """Return the record of an encoder; None where there is none, or its weights changed since."""
    path = BUNDLED_RECORD if spec == MINI else _file(spec)
    if path is None:
        return None
    try:
        return Record.from_json(path.read_bytes())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def write(spec: str, record: Record) -> None:
    """Keep the record of an encoder that was loaded, where its weights can be known again.

    A cache folder that cannot be written is no error.
    """
    path = None if spec == MINI else _file(spec)
    if path is not None and find(spec) is None:
        with suppress(OSError, StorageError):
            storage.write_bytes(str(path), record.to_json())


def _file(spec: str) -> Path | None:
    """The file of an encoder's record; None where nothing says that its weights are still the same."""
    try:
        facts = _known_by(spec)
    except OSError:  # a file vanished under our eyes
        return None
    if facts is None:
        return None
    name = hashlib.sha256(json.dumps([_VERSION, facts]).encode()).hexdigest()
    return _cache_folder() / f"{name[:32]}.json"


def _known_by(spec: str) -> list[object] | None:
    """JSON-able facts that change when the weights do."""
    if not is_short_name(spec) and Path(spec).exists():
        root = Path(spec).resolve()
        return [str(root), sorted(_stamps(root))]
    try:
        place = locate(spec)
    except EncoderError:
        return None
    if place.revision is None or not _COMMIT.fullmatch(place.revision):
        return None  # a branch moves
    return [place.name, place.source, place.subfolder, place.revision]


def _stamps(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files of a directory; or of a file, and of the JSON beside it."""
    if root.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    else:
        files = [path for path in (root, root.with_suffix(".json")) if path.is_file()]
    for path in files:
        info = path.stat()
        yield str(path), info.st_size, info.st_mtime_ns


def _cache_folder() -> Path:
    """`$ID2_CACHE`, or `id2` in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ID2_CACHE") or user / "id2") / "encoders"
