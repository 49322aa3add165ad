from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import id2
from beam_jobs import embed
from id2.jobs import experiment as job
from id2core.encoders.embed_job import EmbedJob
from id2core.encoders.registry import identify
from id2core.errors import EncoderError, ExperimentError, OptionError
from id2core.experiments import closed_sets, embedders, evaluation_sets, open_sets, photo_bench, robustness
from id2core.experiments.costs import Clock
from id2core.experiments.evaluation_sets import EvaluationSet, Queries, RankedReferences
from id2core.experiments.methods import Methods, scaled
from id2core.experiments.results import Skipped
from id2core.runs.execution import Execution
from id2core.training.config import GradientConfig
from id2core.training.finetune import REPORT
from id2core.transforms import heads
from id2core.transforms.linear import Transform
from tests.commands import as_json
from tests.latent_sets import good_w, origins, translated, write_embeddings, write_translations
from tests.tiny_backbones import saved

PHOTOS = {"train": 150, "test": 40, "calibration": 500, "fresh": 40, "distractors": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench of drawn latents: translations by `b` go less astray than those by `a`."""
    root = tmp_path_factory.mktemp("bench")
    for seed, (role, count) in enumerate(PHOTOS.items()):
        known = origins(count, seed)
        write_embeddings(root / f"latents/{role}/embeddings", known, f"{role}-")
        for model, much in (("a", 12.0), ("b", 6.0)):
            if role == "distractors":
                continue
            name = f"{role}-{model}"
            again = np.concatenate([translated(known, 10 * seed + i, much) for i in range(2)])
            write_embeddings(root / f"latents/{name}/embeddings", again, f"{name}-")
            pairs = [(f"{name}-{i:06d}", f"{role}-{i % count:06d}") for i in range(2 * count)]
            write_translations(root / f"translations/{name}/translations", pairs)
    for folder in ("latents", "translations"):
        (root / folder / "test-edict").symlink_to("test-b")
    (root / evaluation_sets.FACTS).write_text(json.dumps({"seen": "a", "unseen": ["b"]}))
    return root


def test_queries_know_their_origins(data: Path) -> None:
    bench = EvaluationSet.load(data)

    known, fresh = bench.queries("a"), bench.queries("b", "fresh")

    assert len(bench.references) == 140
    assert known.origins.tolist() == [*range(40), *range(40)]
    assert np.bincount(known.photos).tolist() == [2] * 40
    assert (fresh.origins == -1).all()


def test_pictures_stand_in_the_order_of_their_latents(data: Path) -> None:
    bench = EvaluationSet.load(data)

    names = [f"test-a-{Path(uri).stem}" for uri in bench.uris("test-a")]

    assert names == bench.read("test-a")[1] and len(names) == 80


def test_w_that_sees_the_origin_finds_it(data: Path) -> None:
    bench = EvaluationSet.load(data)

    raw, good = (evaluation_sets.closed_set(bench.search(w, "a"))["map"] for w in (Transform(), good_w()))

    assert good.value == 1.0
    assert raw.value is not None and raw.high is not None and raw.high < 0.9


def test_equal_scores_stand_before_the_origin() -> None:
    references = np.ones((3, 4), np.float16)
    queries = Queries(references[:1], np.array([1]), np.array([0]))

    assert evaluation_sets.search(Transform(), queries, references).ranks.tolist() == [3]


def test_photos_and_not_their_translations_are_resampled() -> None:
    values, photos = np.repeat([0.0, 1.0] * 20, 8), np.repeat(np.arange(40), 8)

    together, apart = evaluation_sets.mean(values, photos), evaluation_sets.mean(values, np.arange(320))

    assert together.value == apart.value == 0.5
    assert _width(together) > 2 * _width(apart)


def _width(measure: evaluation_sets.Measure) -> float:
    assert measure.low is not None and measure.high is not None
    return measure.high - measure.low


def test_half_without_origin_costs_precision(data: Path) -> None:
    none, ranks = np.zeros(2), np.array([1, 1])
    known = RankedReferences(
        ranks, np.array([[0.9], [0.5]], np.float32), np.array([[0], [1]]), _asked([0, 1])
    )
    scores = np.array([[0.7], [0.1]], np.float32)
    fresh = RankedReferences(ranks * 0, scores, np.array([[0], [1]]), _asked([-1, -1]))

    measured = evaluation_sets.open_set([(known, none), (fresh, none)])

    assert measured["micro_ap"].value == pytest.approx((1 + 2 / 3) / 2)
    assert measured["recall_at_p90"].value == 0.5


def _asked(rows: list[int]) -> Queries:
    return Queries(np.zeros((len(rows), 4), np.float16), np.array(rows), np.arange(len(rows)))


def test_background_is_tuned_without_test_uploads(data: Path, tmp_path: Path) -> None:
    bench = EvaluationSet.load(data)
    pairs = bench.pairs("a")

    chosen = open_sets.tune_background(bench, pairs, good_w())

    held_out = pairs.latents[pairs.offsets[:-1][pairs.held_out(0.1)]]
    assert not (chosen.latents[:, None] == held_out).all(axis=2).any()
    assert chosen.factor >= 0


def test_recipes_make_as_many_passes_as_the_paper(data: Path) -> None:
    pairs = EvaluationSet.load(data).pairs("a")

    plan = scaled(GradientConfig(batch=8), pairs)

    passes = plan.steps * plan.batch / (0.9 * len(pairs.latents))
    assert passes == pytest.approx(50_000 * 512 / 2_100_000, rel=0.1)


def test_experiments_leave_tables_data_plots_and_a_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_sets, "RANKS", (8, 16))
    monkeypatch.setattr(job, "Methods", _small_methods)
    out, page = tmp_path / "out", tmp_path / "results.md"

    names = ["t3", "open", "f8", "t1", "existence", "t7", "t11", "t8"]
    report = as_json(id2.experiment(names=names, data=str(data), out=str(out), page=str(page)))

    rows = {r["method"]: r for r in pq.read_table(out / "t3.parquet").to_pylist()}
    raw, closed = rows["Embeddings of VAE"], rows["W, closed form"]
    assert raw["unseen_map_high"] < closed["unseen_map_low"]
    assert (out / "t3.png").read_bytes().startswith(b"\x89PNG")
    plots = {path.stem for path in out.glob("*.png")}
    assert plots == set(names) - {"t8"} and "Not run here" in report["tables"]["t8"]
    edict = {r["method"]: r["map"] for r in pq.read_table(out / "t11.parquet").to_pylist()}
    assert edict["W, closed form"] == closed["unseen_map"]
    heads_of = [r["method"] for r in pq.read_table(out / "t7.parquet").to_pylist()]
    assert heads_of == list(heads.ALL)
    text = page.read_text()
    assert "7 of" in text and "out/t3.png" in text


def _small_methods(bench: EvaluationSet, out: Path, *others: object) -> Methods:
    return _Small(bench, out, 3)


class _Small(Methods):
    """W with few columns: latents of tests have 64 numbers."""

    def recipe(self, model: str, config: GradientConfig | None = None, name: str = "recipe") -> Transform:
        given = config or GradientConfig()
        small = GradientConfig(
            dimensions=min(16, given.dimensions), batch=32, lr=1e-2, seed=given.seed, head=given.head
        )
        return self._gradient(model, small, name, None)

    def closed(self, model: str, m: int = 16) -> Transform:
        return super().closed(model, min(m, 16))

    def both(self, model: str) -> Transform:
        return self._gradient(
            model, GradientConfig(dimensions=16, batch=32, lr=1e-3), "both", self.closed(model)
        )


def test_a_tuned_backbone_stands_in_table_3_and_not_among_untrained_ones(data: Path, tmp_path: Path) -> None:
    tuned, root = tmp_path / "tuned", tmp_path / "bench"
    tuned.mkdir()
    (tuned / REPORT).write_text(json.dumps({"seconds": 7.5}))
    root.mkdir()
    for path in data.iterdir():
        (root / path.name).symlink_to(path)
    (root / evaluation_sets.FACTS).unlink()
    (root / f"latents-{evaluation_sets.TUNED}tiny").symlink_to(data / "latents")
    evaluation_sets.write_facts(root, "a", ["b"], "", "no such encoder")
    evaluation_sets.write_facts(root, "a", ["b"], f"{evaluation_sets.TUNED}tiny", str(tuned))
    methods = _Small(EvaluationSet.load(root), root, 3)

    result = closed_sets.table_3(methods)

    assert isinstance(embedders.table_2(methods), Skipped)
    first, raw = result.table.to_pylist()[:2]
    assert first["method"] == "Tuned backbone, tiny" and raw["method"] == "Embeddings of VAE"
    assert (first["seen_map"], first["train_s"], first["extract_ms"]) == (raw["seen_map"], 7.5, None)


def test_extraction_is_timed_where_encoder_and_pictures_are_there(photo_set: Path, tmp_path: Path) -> None:
    encoder = str(saved("resnet", tmp_path / "tiny"))
    for role in ("test", "distractors"):
        spec = EmbedJob(str(photo_set), str(tmp_path / "latents" / role), encoder, transform="none")
        embed.run(spec, Execution.begin())
    evaluation_sets.write_facts(tmp_path, "a", ["b"], "", encoder)
    bench = EvaluationSet.load(tmp_path)

    measured = Clock(bench).costs(Transform(), 1.0)
    (photo_set / "p0.jpg").unlink()
    gone = Clock(bench).costs(Transform(), 1.0)
    pairs = [(name, name) for name in bench.read("test")[1]]
    for model in bench.models:
        (tmp_path / f"latents/test-{model}").symlink_to("test")
        write_translations(tmp_path / f"translations/test-{model}/translations", pairs)
    attacked = robustness.figure_7(Methods(bench, tmp_path))

    assert (measured["extract_ms"] or 0) > 0 and (measured["match_s"] or 0) > 0
    assert gone["extract_ms"] is None
    assert isinstance(attacked, Skipped) and "p0.jpg" in attacked.reason
    assert Clock(replace(bench, specs={})).costs(Transform(), 1.0)["extract_ms"] is None


def test_latents_that_are_no_square_pass_table_7_over(tmp_path: Path) -> None:
    for role in ("test", "distractors"):
        write_embeddings(tmp_path / f"latents/{role}/embeddings", origins(3, 0)[:, :48], f"{role}-")
    evaluation_sets.write_facts(tmp_path, "a", ["b"], "", "pdq")

    outcome = closed_sets.table_7(Methods(EvaluationSet.load(tmp_path), tmp_path))

    assert isinstance(outcome, Skipped) and "48 numbers" in outcome.reason


def test_a_folder_does_not_shadow_the_short_name_of_an_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    specs = {"": "sd2", "vit": "vit", "pdq": "pdq", "own": "own"}
    for name, spec in specs.items():
        Path(spec).mkdir()
        evaluation_sets.write_facts(tmp_path, "a", ["b"], name, spec)

    resolved = {"vit": str(tmp_path / "vit"), "own": str(tmp_path / "own")}
    assert EvaluationSet.load(tmp_path).specs == specs | resolved


def test_photos_do_not_mix_with_a_bench_of_other_data(
    photo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation_sets.write_facts(tmp_path, "sd2", ["sdxl"], "", "sd2")

    with pytest.raises(ExperimentError, match=f"{tmp_path} holds other data"):
        id2.experiment_data(photos=str(photo_set), data=".")
    assert not (tmp_path / "photos").exists()


@pytest.mark.parametrize(
    ("captions", "what"),
    [
        (None, r"captions\.csv is missing.*columns `file` and `caption`"),
        ("name,caption\np0.jpg,a canoe\n", "has no column 'file'"),
        ("file,caption\np0.jpg,a canoe\n", "has 1 different captions.*two or more"),
    ],
)
def test_missing_captions_are_refused_with_what_is_needed(
    captions: str | None, what: str, photo_set: Path, tmp_path: Path
) -> None:
    (photo_set / "captions.csv").unlink()
    if captions:
        (photo_set / "captions.csv").write_text(captions)

    with pytest.raises(ExperimentError, match=what):
        photo_bench.lay_out(photo_set, tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_wrong_names_and_folders_say_what_there_is(data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"t99.*t3"):
        id2.experiment(names=["t99"], data=str(data), out=str(tmp_path))
    with pytest.raises(ExperimentError, match="experiment data"):
        id2.experiment(names=["t3"], data=str(tmp_path), out=str(tmp_path / "out"))


def test_a_second_encoder_is_looked_at_before_anything_is_measured(data: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    own = {"encoder_id": identify("pdq").encoder_id}
    write_embeddings(bench / "latents/test/embeddings", origins(4, 0), "test-", **own)
    (bench / evaluation_sets.FACTS).write_text(json.dumps({"seen": "a", "unseen": ["b"]}))
    for names, folder, also, error, reason in (
        (["t3"], data, "pdq", OptionError, "--also is for the experiment uploads-two"),
        (["t3", "uploads-two"], data, "nothing", EncoderError, "no encoder 'nothing'"),
        (["uploads-two"], bench, "pdq", OptionError, "--also is the encoder of .*bench itself"),
    ):
        with pytest.raises(error, match=reason):
            id2.experiment(names=names, data=str(folder), out=str(tmp_path / "out"), also=also)
    assert not (tmp_path / "out").exists()


def test_no_photo_has_two_roles_and_no_prompt_two_uses(photo_set: Path, tmp_path: Path) -> None:
    photo_bench.lay_out(photo_set, tmp_path)

    prompts = {
        run.name: {line.split(",", 1)[1] for line in _lines(tmp_path / "prompts" / f"{run.name}.csv")}
        for run in photo_bench.RUNS
    }
    roles = photo_bench.roles(photo_set)
    names = [name for role, photos in roles.items() if role not in photo_bench.PARTS for name in photos]
    assert len(names) == len(set(names))
    assert len(list((tmp_path / "photos/train").iterdir())) == 6 * photo_bench.TRAIN_COUNT
    trained = set().union(*(p for name, p in prompts.items() if name.startswith("train-")))
    tested = set().union(*(p for name, p in prompts.items() if not name.startswith("train-")))
    assert not trained & tested
    assert len(_lines(tmp_path / "prompts/test-mini-a.csv")) == 2 * len(roles["test"])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:]


@pytest.fixture
def photo_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few small photos, and roles that need few."""
    from PIL import Image

    from id2core.experiments import photo_folders

    for module, name, value in (
        (photo_folders, "HELD_OUT", 6),
        (photo_bench, "TRAIN_COUNT", 10),
        (photo_bench, "WITHOUT_ORIGIN", 4),
        (photo_bench, "SOME_COUNT", 3),
    ):
        monkeypatch.setattr(module, name, value)
    folder = tmp_path / "photos-in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"p{i}.jpg")
    rows = "\n".join(f"p{i}.jpg,drawn,subject {i}" for i in range(20))
    (folder / "captions.csv").write_text(f"file,source,caption\n{rows}\n")
    return folder
