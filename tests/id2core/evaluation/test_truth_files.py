from __future__ import annotations

import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from id2core.errors import TruthError
from id2core.evaluation import truth_files
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset

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


NFC, NFD = (unicodedata.normalize(form, "/d/café") for form in ("NFC", "NFD"))


def rejects_of(folder: Path, *uris: str) -> Dataset:
    table = pa.table({f.name: list(uris) if f.name == "uri" else [""] * len(uris) for f in schemas.REJECTS})
    record = datasets.write_file(str(folder), "part-0", [table.cast(schemas.REJECTS)], schemas.REJECTS)
    datasets.write_commit(str(folder), Commit("rejects", "r", {}, (record,)))
    return Dataset.open(str(folder))


def test_a_name_is_found_in_any_unicode_form_where_only_one_object_has_it(tmp_path: Path) -> None:
    one = rejects_of(tmp_path / "one", f"{NFD}1.jpg", f"{NFC}2.jpg", f"{NFC}3.jpg", f"{NFD}3.jpg", "/d/a.jpg")
    asked = [
        f"{NFC}1.jpg",
        f"{NFD}1.jpg",
        f"{NFD}2.jpg",
        f"{NFC}3.jpg",
        f"{NFD}3.jpg",
        "/d/b.jpg",
        "/d/a.jpg",
    ]
    assert truth_files.spellings(asked, [one]) == {
        f"{NFC}1.jpg": f"{NFD}1.jpg",
        f"{NFD}1.jpg": f"{NFD}1.jpg",
        f"{NFD}2.jpg": f"{NFC}2.jpg",
        f"{NFC}3.jpg": f"{NFC}3.jpg",
        f"{NFD}3.jpg": f"{NFD}3.jpg",
        "/d/a.jpg": "/d/a.jpg",
    }
    two_forms = rejects_of(tmp_path / "two", "/d/\u1e69.jpg", "/d/s\u0307\u0323.jpg")
    assert truth_files.spellings(["/d/s\u0323\u0307.jpg"], [two_forms]) == {}
    assert truth_files.spelled({f"{NFC}1.jpg": f"{NFD}2.jpg"}, [one], [one]) == {f"{NFD}1.jpg": f"{NFC}2.jpg"}
    assert truth_files.spelled_groups({f"{NFC}1.jpg": "g"}, [one]) == {f"{NFD}1.jpg": "g"}
    with pytest.raises(TruthError, match="two spellings"):
        truth_files.spelled({f"{NFC}1.jpg": None, f"{NFD}1.jpg": "/r"}, [one], [one])


def test_the_name_of_a_folder_is_known_in_any_unicode_form() -> None:
    for form in (NFC, NFD):
        assert truth_files.absolute(f"{form.rsplit('/')[-1]}/u.jpg", NFD) == f"{NFD}/u.jpg"
