from __future__ import annotations

import pytest

from id2core.encoders import decoder_pool
from id2core.encoders.pictures import reading_threads
from id2core.store.storage import Object


@pytest.mark.parametrize(("cores", "processes"), [(1, 2), (2, 4), (4, 8), (8, 8), (16, 16), (96, 32)])
def test_decoders_are_two_for_each_core_of_a_small_machine(cores: int, processes: int) -> None:
    assert decoder_pool.default_processes(cores) == processes


def test_a_bucket_gets_more_threads_than_decoders_and_a_local_source_does_not() -> None:
    decoders = decoder_pool.default_processes()
    local = [Object("/in/a.jpg", "1", 9), Object("/in/b.tar#gs://c.jpg", "1#tar:0+9", 9)]
    assert reading_threads(local) == decoders
    assert reading_threads([*local, Object("gs://b/c.tar#d.jpg", "1#tar:0+9", 9)]) == max(8, 2 * decoders)
