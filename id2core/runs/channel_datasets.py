"""Where the corpora of a further channel are: below its folder, or elsewhere where they came as data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from id2core.errors import DatasetError
from id2core.runs import leftovers
from id2core.store import schemas, storage, strict_json

# In the folder of a channel of which a corpus is elsewhere. An `--out` has the channels that have a folder
# with a file there, so this file also says that the channel is there.
PLACES: Final = "places.json"


class ChannelDatasets(BaseModel):
    """URIs of the embeddings of a channel.

    Attributes:
        reference, queries: of its references and of its uploads.
    """

    model_config = ConfigDict(frozen=True)

    reference: str
    queries: str

    @property
    def both(self) -> tuple[str, str]:
        """Return the URIs of references and of uploads."""
        return self.reference, self.queries


def find(out: str, name: str) -> ChannelDatasets:
    """Return where the corpora of a channel are.

    Args:
        out: a normalized place.
        name: of the channel.

    Raises:
        DatasetError: the file that says so is damaged.
    """
    mend = "repeat the last scan there, which writes it again"
    kept = strict_json.read_model(_file(out, name), ChannelDatasets, DatasetError, mend)
    return kept or _inside(out, name)


def keep(out: str, name: str, elsewhere: Mapping[str, str]) -> None:
    """Write down which corpora of a channel are not below its folder.

    Args:
        out: a normalized place.
        name: of the channel.
        elsewhere: `reference` and `queries` → URI of an embeddings data set.
    """
    inside = _inside(out, name)
    places = inside.model_copy(update=dict(elsewhere))
    if places != inside:
        storage.write_bytes(_file(out, name), places.model_dump_json(indent=1).encode())
    else:
        storage.delete(_file(out, name))


def _inside(out: str, name: str) -> ChannelDatasets:
    place = leftovers.channel_place(out, name)
    sides = {side: storage.join(place, side, schemas.EMBEDDINGS) for side in ChannelDatasets.model_fields}
    return ChannelDatasets(**sides)


def _file(out: str, name: str) -> str:
    return storage.join(leftovers.channel_place(out, name), PLACES)
