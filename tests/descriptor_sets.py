"""Committed embeddings data sets over given descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset

IDS = {"encoder_id": "e-1", "transform_id": "t", "preprocess_id": "p"}


def unit(rows: int, size: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def write_embeddings(uri: Path, vectors: np.ndarray, files: int, prefix: str, **ids: str) -> Dataset:
    """A committed embeddings data set over given descriptors (latents are left at zero)."""
    schema = schemas.embeddings_schema(1, vectors.shape[1])
    records = []
    for i, rows in enumerate(np.array_split(np.arange(len(vectors)), files)):
        data = {name: [None] * len(rows) for name in schema.names} | {
            "image_id": [f"{prefix}{r:06d}" for r in rows],
            "uri": [f"/{prefix}/{r:06d}.jpg" for r in rows],
            "generation": ["1"] * len(rows),
            "bytes": [1] * len(rows),
            "run_id": ["r"] * len(rows),
            "latent": schemas.vectors_to_array(np.zeros((len(rows), 1), np.float16), 1),
            "descriptor": schemas.vectors_to_array(vectors[rows], vectors.shape[1]),
        }
        table = pa.Table.from_pydict(data, schema)
        records.append(datasets.write_file(str(uri), f"part-{i}", [table], schema))
    datasets.write_commit(str(uri), Commit("embeddings", "r", IDS | ids, tuple(records)))
    return Dataset.open(str(uri))
