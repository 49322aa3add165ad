"""How a search is cut into shards and parts of the queries, as numbers: for plans, and for estimates."""

from __future__ import annotations

from typing import Final

# A shard has this many bytes or more, and a task this many queries, even if workers then have nothing to do:
# smaller ones cost more to load and to merge than to search.
LEAST_SHARD_BYTES: Final = 64 << 20
LEAST_QUERIES: Final = 8192
# Queries that one load of a shard is good for.
QUERIES_PER_LOAD: Final = 65_536
# Queries that a shard of codes meets at once: the descriptors of what is found are read once for all of them.
CODED_QUERIES_AT_ONCE: Final = 16_384
# Tasks that a job wants for each of several workers, so that a slow one does not keep the others waiting.
TASKS_PER_WORKER: Final = 4
# Bytes of a reference in a shard beside its descriptor: ids, and room for what finds them.
_TEXT_BYTES: Final = 256
# Bytes of a GPU for scores and candidates, see `gpu_index`.
_GPU_SCRATCH: Final = 6 << 30


def row_bytes(descriptor_size: int) -> int:
    """Return the bytes that a reference takes in a shard, in the memory of a worker."""
    return 4 * descriptor_size + _TEXT_BYTES


def gpu_bytes(shard_bytes: int) -> int:
    """Return the bytes that a shard takes of a GPU: descriptors as they are and rounded, and scores."""
    return shard_bytes * 3 // 2 + _GPU_SCRATCH


def spread(workers: int) -> int:
    """Return how many tasks a job with so many workers wants. Nobody waits for the tasks of one worker."""
    return TASKS_PER_WORKER * workers if workers > 1 else 1


def counts(
    references: int,
    queries: int,
    row: int,
    shard_bytes: int,
    spread: int = 1,
    queries_each: int = QUERIES_PER_LOAD,
) -> tuple[int, int]:
    """Return how many shards, and how many parts of the queries, a search is cut into: each two are a task.

    A shard fills the memory that it may take, and meets as many queries as one load is good for. If that
    makes fewer tasks than wanted, first the queries of a task become fewer, then the references of a shard.

    Args:
        references, queries: rows that meet, at least one each.
        row: bytes of a reference in a shard, see `row_bytes`.
        shard_bytes: of references that a worker holds at once.
        spread: how many tasks are wanted, so that every worker has its share.
        queries_each: that one load of a shard is good for.
    """
    held = references * row
    shards = -(-held // shard_bytes)
    parts = -(-queries // queries_each)
    if shards * parts < spread:
        parts = max(parts, min(-(-spread // shards), queries // LEAST_QUERIES))
    if shards * parts < spread:
        shards = max(shards, min(-(-spread // parts), held // LEAST_SHARD_BYTES))
    return min(shards, references), parts
