from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core import truth
from id2core.truth import TruthError

ROWS = {
    "query_uri": ["u1.jpg", "uploads/u2.jpg", "gs://b/u3.jpg"],
    "reference_uri": ["refs/a/r.jpg", "", "/x/r"],
}
EXPECTED = {"/d/uploads/u1.jpg": "/d/refs/a/r.jpg", "/d/uploads/u2.jpg": None, "gs://b/u3.jpg": "/x/r"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_relative_uris_belong_to_the_given_folders(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"truth.{kind}"
    if kind == "csv":
        lines = [",".join(pair) for pair in zip(*ROWS.values(), strict=True)]
        path.write_text("\n".join(["query_uri,reference_uri", *lines]) + "\n")
    else:
        pq.write_table(pa.table(ROWS), path)
    assert truth.read(str(path), "/d/refs", "/d/uploads") == EXPECTED


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("query,origin\na,b\n", "expected query_uri"),
        ("query_uri,reference_uri\na,b\na,c\n", "two origins for a"),
        ("query_uri,reference_uri\na,b,c\n", "not a CSV"),
    ],
)
def test_a_file_that_cannot_be_understood_says_so(text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(TruthError, match=hint):
        truth.read(str(tmp_path / "truth.csv"), "/d/refs", "/d/uploads")
    with pytest.raises(TruthError, match="no such"):
        truth.read(str(tmp_path / "nothing.csv"), "/d/refs", "/d/uploads")
