from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.errors import TruthError
from id2core.evaluation import truth_files

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
    assert truth_files.read(str(path), "/d/refs", "/d/uploads") == EXPECTED


def test_groups_stand_in_a_third_column_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(
        "note,query_uri,group,reference_uri\n7,u1.jpg,1,r.jpg\n,uploads/u2.jpg, crop ,\n,u3.jpg,,r.jpg\n"
    )
    assert truth_files.read_groups(str(path), "/d/uploads") == {
        "/d/uploads/u1.jpg": "1",
        "/d/uploads/u2.jpg": "crop",
    }
    assert truth_files.read(str(path), "/d/refs", "/d/uploads")["/d/uploads/u2.jpg"] is None
    pq.write_table(pa.table(ROWS | {"group": [1, None, 2]}), tmp_path / "truth.parquet")
    groups = truth_files.read_groups(str(tmp_path / "truth.parquet"), "/d/uploads")
    assert groups == {"/d/uploads/u1.jpg": "1", "gs://b/u3.jpg": "2"}
    path.write_text("query_uri,reference_uri\nu1.jpg,\n")
    assert truth_files.read_groups(str(path), "/d/uploads") == {}
    path.write_text("query_uri,reference_uri,group\nu1.jpg,,a\nu1.jpg,,b\n")
    with pytest.raises(TruthError, match=r"two groups for u1\.jpg"):
        truth_files.read_groups(str(path), "/d/uploads")


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
        truth_files.read(str(tmp_path / "truth.csv"), "/d/refs", "/d/uploads")
    with pytest.raises(TruthError, match="no such"):
        truth_files.read(str(tmp_path / "nothing.csv"), "/d/refs", "/d/uploads")
