"""`id2 estimate`: numbers as people write them, a table, JSON, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import id2
from id2core.errors import OptionError, SearchError
from id2core.estimates.rates import RateFile
from tests.commands import call
from tests.id2core.estimates.test_estimates import rate_file


@pytest.fixture
def rates(tmp_path: Path) -> str:
    path = tmp_path / "rates.json"
    path.write_text(rate_file().model_dump_json())
    return str(path)


def test_the_command_prints_stages_bytes_and_machines(rates: str) -> None:
    arguments = [
        "estimate",
        "--references",
        "1e9",
        "--queries",
        "1e7",
        "--engine",
        "dataflow",
        "--rates",
        rates,
    ]
    done = call(*arguments, "--workers", "100", "--nights", "2")
    assert done.returncode == 0, done.stderr
    for part in (
        "embedding of references",
        "search of a night",
        "back-scan of everything",
        "re-projection",
        "training of W",
        "reference/embeddings",
        "start of dataflow, and what it adds to each unit of work: not measured",
        "a processor",
    ):
        assert part in done.stdout
    assert "cost" not in done.stdout
    assert "cost" in call(*arguments, "--vcpu-hour-price", "0.05").stdout
    card = call(*arguments, "--gpu", "a100").stdout
    assert "not measured: a100: search_viewed_number" in card and "not measured" in card.splitlines()[1]
    assert "views: 1.02 looks at an upload are assumed. Each meets 1,920 numbers of a reference" in card
    assert "views:" not in call(*arguments, "--views", "none").stdout


def test_the_command_and_the_function_give_one_object(rates: str) -> None:
    done = call("estimate", "--references", "1e6", "--queries", "1e3", "--rates", rates, "--json")
    made = json.loads(done.stdout)
    assert made == json.loads(id2.estimate(references=1e6, queries=1000, rates=rates).model_dump_json())
    assert made["references"] == 1_000_000 and made["kept_queries"] == 30_000


def test_sizes_are_those_of_the_encoder(rates: str) -> None:
    given = {"references": 1e5, "queries": 1, "rates": rates, "views": "none"}
    made, sized = id2.estimate(**given, encoder="pdq"), id2.estimate(**given, latent=256, dimension=256)
    assert made.bytes == sized.bytes
    assert id2.estimate(**given, gpu="none").stages == id2.estimate(**given).stages


def test_views_are_on_by_default_and_cost(rates: str) -> None:
    given = {"references": 1e6, "queries": 1e4, "rates": rates}
    made, whole = id2.estimate(**given), id2.estimate(**given, views="none")
    assert (made.views, whole.views) == ("auto", "none") and made.search.shards > whole.search.shards
    for one, other in zip(made.stages, whole.stages, strict=True):
        assert one.vcpu_hours > other.vcpu_hours or one.name == "training of W"
    assert id2.estimate(**given, encoder="pdq").search.met_numbers == 256
    backgrounds = [stage.name for stage in id2.estimate(**given, background=1000).stages]
    assert "background of a night" in backgrounds


def test_an_index_is_in_the_table_and_refused_as_id2_index_refuses_it(rates: str) -> None:
    string = "OPQ64_448,IVF2048,PQ64np"
    arguments = ["estimate", "--queries", "1e4", "--rates", rates, "--index", string]
    done = call(*arguments, "--references", "1e7", "--probes", "32")
    for part in (
        "index of references",
        "reference/index",
        f"search of a night by {string}",
        "32 lists and 400 candidates of an upload in each shard are assumed",
    ):
        assert part in done.stdout
    few = call(*arguments, "--references", "1e4")
    assert few.returncode == 1
    assert "is trained on 79,872 references or more, and there are 10,000" in few.stderr
    with pytest.raises(SearchError, match="descriptors have 256 numbers"):
        id2.estimate(references=1e7, queries=1, index=string, dimension=256)
    with pytest.raises(OptionError, match="no index 'IVF8,Flat'"):
        id2.estimate(references=1e7, queries=1, index="IVF8,Flat")


def test_the_bundled_rates_give_an_estimate_for_each_stage() -> None:
    report = id2.estimate(
        references=1e12, queries=1e12, engine="flink", workers=1e6, gpu="h100", encoder="sd2"
    )
    assert report.gpu == RateFile.load().devices["h100"].machine
    assert report.stages[0].name == "embedding of references"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": 0}, "references is 0"),
        ({"references": 1.5}, "whole number"),
        ({"references": float("nan")}, "references is nan"),
        ({"references": 1e16}, "references is 1e"),
        ({"queries": -1}, "queries is -1"),
        ({"workers": 2}, "local has one worker"),
        ({"hours": 2}, "local has one worker"),
        ({"engine": "flink", "workers": 2, "hours": 2}, "either --workers or --hours"),
        ({"gpu_hour_price": 2}, "goes with --gpu"),
        ({"gpu": "h100", "gpu_hour_price": 2}, "give both"),
        ({"gpu": "H100; rm"}, "gpu is"),
        ({"rates": "nowhere.json"}, "no such file"),
        ({"gpu": "h100", "shard_memory": 60_000}, "smaller --shard-memory"),
        ({"probes": 8}, "give --index, too"),
    ],
)
def test_what_cannot_be_estimated_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        id2.estimate(**({"references": 1000, "queries": 10} | options))
