"""Read ahead: work on items by threads, hand the results out in order, hold only so many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], ahead: int, threads: int | None = None
) -> Iterator[Result]:
    """Yield `work(item)` for every item, in order, computed by threads in a sliding window.

    Args:
        items: read as they are needed, never all at once.
        work: called in a thread. Where it raises, the iterator raises in the item's place.
        ahead: results that are finished or under way beside the one that the caller holds.
        threads: by default one for each of them.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads or ahead) as pool:
        window = deque(pool.submit(work, item) for item in islice(source, ahead))
        try:
            while window:
                result = window.popleft().result()
                window.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
                del result  # or it would stay in memory while the next one is waited for
        finally:
            for future in window:
                future.cancel()
