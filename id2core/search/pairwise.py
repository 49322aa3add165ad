"""Matchers that compare pictures place by place: feature maps against feature maps, pair by pair.

The paper's Table 3 sets TransMatcher (Liao & Shao 2021) and QAConv-GS (2022) against ID²: a network gives a
map of features for every picture, and a second function scores every pair of maps. The paper measured 900
and 1,800 times the cost of a cosine of vectors, and there is no index: `search` scores all pairs, in blocks.

- `LocalMatching` has nothing to train: every place looks for its like in the other picture. It takes
  the place of such matchers until trained weights are there, and is no reproduction of either.
- `Scripted` runs a TorchScript file with the methods `encode` and `score`: the way to plug in weights of
  TransMatcher or QAConv-GS. None has ever run here.
- Re-identification networks that give one vector, such as IBN-Net, need none of this: save them as
  TorchScript and give the file to `load_encoder`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from numpy.typing import NDArray
from torch import Tensor

from id2core.encoders import backbones, decoder_pool, images, sidecars
from id2core.encoders.backbones import encoder_of_backbone
from id2core.encoders.base import Encoder
from id2core.encoders.hub import locate
from id2core.encoders.preprocess import Preprocess
from id2core.environment import best_dtype, usable_device
from id2core.errors import EncoderError
from id2core.search.topk import TopK
from id2core.store import schemas, storage
from id2core.store.rejects import Reject

# Pairs that are scored at once: 64 queries with 64 references.
BLOCK = 64
_COLUMNS = ("query_uri", "rank", "reference_uri", "score")

Maps = NDArray[np.float16]


class PairwiseScorer(ABC):
    """A network for maps and a function for pairs of them.

    Attributes:
        scorer_id: name and the first 12 hex of the SHA-256 of the weights, or of the file.
        preprocess: what the pixels must look like.
    """

    scorer_id: str
    preprocess: Preprocess

    @abstractmethod
    def encode(self, pixels: NDArray[np.uint8]) -> Maps:
        """Feature maps of pictures.

        Args:
            pixels: uint8[B,size,size,3] RGB.

        Returns:
            float16[B,C,H,W].
        """

    @final
    def score(self, queries: Maps, references: Maps, block: int = BLOCK) -> NDArray[np.float32]:
        """Scores of all pairs, higher for those that are more alike.

        Args:
            queries, references: float16[Q,C,H,W] and float16[R,C,H,W], as `encode` gives them.
            block: so many of each are compared at once. `LocalMatching` takes block²·(H·W)²·4 bytes for
                it: 39 MB at 7×7 places and 64; choose 8 at 32×32 places.

        Returns:
            float32[Q,R].

        Raises:
            ValueError: the maps are not of one size, or block is below 1.
        """
        if queries.ndim != 4 or queries.shape[1:] != references.shape[1:]:
            raise ValueError(
                f"maps must be [Q,C,H,W] and [R,C,H,W], not {queries.shape} and {references.shape}; encode "
                "both sides with one scorer"
            )
        scores = np.empty((len(queries), len(references)), np.float32)
        with torch.inference_mode():
            for rows in _blocks(len(queries), block):
                q = self._prepare(queries[rows])
                for columns in _blocks(len(references), block):
                    block_scores = self._score(q, self._prepare(references[columns]))
                    scores[rows, columns] = block_scores.float().cpu().numpy()
        return scores

    @abstractmethod
    def _prepare(self, maps: Maps) -> Tensor:
        """Maps where and as `_score` takes them."""

    @abstractmethod
    def _score(self, queries: Tensor, references: Tensor) -> Tensor:
        """float[q,r], of a block of prepared maps."""


class LocalMatching(PairwiseScorer):
    """The mean cosine of each place with its like in the other picture, taken both ways.

    As QAConv does before it is trained: every place of the query's map seeks the most similar one of the
    reference's, wherever it is, and the other way round.
    """

    def __init__(self, encoder: Encoder, channels: int) -> None:
        """A matcher of an encoder's latents.

        Args:
            encoder: its latents are maps, flattened, such as those of an autoencoder or `Backbone.maps`.
            channels: C of the maps: 4 of Stable Diffusion 2's VAE.

        Raises:
            EncoderError: the latents are no square maps of that many channels.
        """
        places, rest = divmod(encoder.latent_size, channels)
        side = int(places**0.5)
        if rest or side**2 != places:
            raise EncoderError(
                f"{encoder.encoder_id} gives {encoder.latent_size} numbers: no square map of {channels} "
                "channels"
            )
        self.scorer_id, self.preprocess = f"local-{encoder.encoder_id}", encoder.preprocess
        self._encoder, self._shape = encoder, (channels, side, side)

    def encode(self, pixels: NDArray[np.uint8]) -> Maps:
        """See `PairwiseScorer.encode`."""
        return self._encoder.encode(pixels).reshape(-1, *self._shape)

    def _prepare(self, maps: Maps) -> Tensor:
        places = torch.from_numpy(maps).to(self._encoder.device, torch.float32).flatten(2)
        return F.normalize(places, dim=1)

    def _score(self, queries: Tensor, references: Tensor) -> Tensor:
        alike = torch.einsum("qcx,rcy->qrxy", queries, references)
        return (alike.amax(3).mean(2) + alike.amax(2).mean(2)) / 2


class Scripted(PairwiseScorer):
    """A TorchScript file with `encode` and `score`; it runs in float32.

    `encode` takes float32[B,3,size,size] and gives float32[B,C,H,W]; `score` takes float32[q,C,H,W] and
    float32[r,C,H,W] and gives float32[q,r]. Size, mean and std are in a JSON file beside it, as
    `load_encoder` reads it. TorchScript is a program: load only files that you trust.
    """

    def __init__(self, path: Path, device: str = "auto", batch_size: int | None = None) -> None:
        """Load the file.

        Raises:
            EncoderError: it is no TorchScript file, or lacks one of the methods.
        """
        self._device = usable_device(device)
        self.preprocess = sidecars.preprocess_beside(path)
        try:
            self._module = torch.jit.load(str(path), self._device).eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise EncoderError(f"{path} is no TorchScript file: {error}") from error
        missing = [name for name in ("encode", "score") if not hasattr(self._module, name)]
        if missing:
            raise EncoderError(f"{path} has no method {missing[0]}; export it with torch.jit.export")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self._shape: tuple[int, ...] = ()
        self._encoder = Encoder(
            path.stem, digest, self._maps, self._device, torch.float32, self.preprocess, batch_size
        )
        self.scorer_id = self._encoder.encoder_id

    def _maps(self, x: Tensor) -> Tensor:
        maps = torch.as_tensor(self._module.encode(x))
        self._shape = tuple(maps.shape[1:])
        return maps

    def encode(self, pixels: NDArray[np.uint8]) -> Maps:
        """See `PairwiseScorer.encode`."""
        flat = self._encoder.encode(pixels)
        return flat.reshape(-1, *self._shape)

    def _prepare(self, maps: Maps) -> Tensor:
        return torch.from_numpy(maps).to(self._device, torch.float32)

    def _score(self, queries: Tensor, references: Tensor) -> Tensor:
        return torch.as_tensor(self._module.score(queries, references))


def load(
    spec: str, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> PairwiseScorer:
    """Load a scorer by name.

    Args:
        spec: a TorchScript file (`Scripted`); or a short name of `hub.BACKBONES`, a directory or a hub
            id of a vision backbone, whose last feature maps `LocalMatching` compares.
        device, dtype, batch_size: as `load_encoder` takes them; a TorchScript file runs in float32.

    Raises:
        EncoderError: nothing of that name can be loaded.
    """
    if Path(spec).is_file():
        return Scripted(Path(spec), device, batch_size)
    place = locate(spec)
    backbone = backbones.load(place.source, place.subfolder, place.revision)
    where = usable_device(device)
    kind = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
    encoder = encoder_of_backbone(backbone, place.name, where, kind, batch_size, maps=True)
    side = backbone.preprocess.size
    with torch.inference_mode():
        channels = backbone.maps(torch.zeros(1, 3, side, side, device=where, dtype=kind)).shape[1]
    return LocalMatching(encoder, channels)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one side of a search.

    Attributes:
        uris: of N pictures, each once.
        maps: float16[N,C,H,W]; a memory-mapped array will do.
    """

    uris: tuple[str, ...]
    maps: Maps

    def __post_init__(self) -> None:
        if len(self.uris) != len(self.maps) or len(set(self.uris)) < len(self.uris):
            raise ValueError(f"{len(self.uris)} URIs and {len(self.maps)} maps: give each picture once")


def read(
    scorer: PairwiseScorer, uris: Sequence[str], batch: int = BLOCK
) -> tuple[Pictures, dict[str, Reject]]:
    """Read picture files and encode them.

    Args:
        scorer: what encodes them.
        uris: local paths or `gs://` objects.
        batch: pictures that are decoded before they are encoded.

    Returns:
        The pictures in the order of `uris`, and those that are none with the reason.

    Raises:
        FileNotFoundError: a URI names nothing.
    """
    parts, good, rejects = [], list[str](), dict[str, Reject]()
    for rows in _blocks(len(uris), batch):
        decoded = {u: decoder_pool.decode(storage.read_bytes(u), scorer.preprocess.size) for u in uris[rows]}
        fine = {uri: d.pixels for uri, d in decoded.items() if isinstance(d, images.Decoded)}
        rejects |= {uri: d for uri, d in decoded.items() if isinstance(d, Reject)}
        if fine:
            parts.append(scorer.encode(np.stack(list(fine.values()))))
            good += fine
    maps = np.concatenate(parts) if parts else np.empty((0, 0, 0, 0), np.float16)
    return Pictures(tuple(good), maps), rejects


def search(
    scorer: PairwiseScorer, queries: Pictures, references: Pictures, k: int, block: int = BLOCK
) -> pa.Table:
    """Find the k best references of each query by scoring all pairs.

    Memory beside the maps: what `PairwiseScorer.score` takes for a block, and the table.

    Args:
        scorer: of both sides' maps.
        queries, references: what is compared.
        k: references kept per query; all where there are fewer.
        block: see `PairwiseScorer.score`.

    Returns:
        Columns query_uri, rank (from 1), reference_uri and score, typed as in `schemas.MATCHES`, ordered by
        query and rank; equal scores by reference_uri. `metrics.evaluate` takes it.

    Raises:
        ValueError: k is below 1, a score is not finite, or as `PairwiseScorer.score`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    order = np.argsort(np.array(references.uris, dtype=np.object_))
    parts = []
    for rows in _blocks(len(queries.uris), block):
        best = TopK(rows.stop - rows.start, k)
        for columns in _blocks(len(order), block):
            best.add(_scores(scorer, queries.maps[rows], references.maps[order[columns]], block))
        parts.append(best.result())
    return _as_matches(parts, queries, pa.array(references.uris, pa.string()).take(pa.array(order)))


def _scores(scorer: PairwiseScorer, queries: Maps, references: Maps, block: int) -> NDArray[np.float32]:
    scores = scorer.score(queries, references, block)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; the maps overflow float16, or the scorer is broken")
    return scores


def _as_matches(
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]], queries: Pictures, references: pa.Array
) -> pa.Table:
    """The best rows and scores of blocks of queries as a table; `references` are URIs by row."""
    schema = pa.schema([schemas.MATCHES.field(name) for name in _COLUMNS])
    if not parts:
        return schema.empty_table()
    rows, scores = (np.concatenate(x) for x in zip(*parts, strict=True))
    kept = rows.shape[1]
    columns = {
        "query_uri": pa.array(np.repeat(np.array(queries.uris, dtype=np.object_), kept), pa.string()),
        "rank": pa.array(np.tile(np.arange(1, kept + 1, dtype=np.int32), len(rows))),
        "reference_uri": references.take(pa.array(rows.reshape(-1))),
        "score": pa.array(scores.reshape(-1)),
    }
    return pa.table(columns, schema=schema)


def _blocks(count: int, size: int) -> Iterator[slice]:
    if size < 1:
        raise ValueError(f"a block must have at least 1 picture, not {size}")
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
