"""Two channels searched into one `matches/`: rows of both, one rate, each pair once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from beam_jobs import search
from id2core.runs.execution import Execution
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration, channels
from id2core.verdicts.calibration import Verdict
from id2core.verdicts.channel_judging import ChannelJudge
from id2core.verdicts.channels import Channels
from id2core.verdicts.judging import Judge
from tests.descriptor_sets import IDS, unit, write_embeddings

OF_EACH = {"vae": IDS, "sscd": IDS | {"encoder_id": "sscd-0123456789ab", "transform_id": "identity"}}
REFERENCES, QUERIES, TOP_K = 60, 12, 5


def judges(references: int) -> dict[str, ChannelJudge]:
    strangers = np.random.default_rng(0).normal(0.5, 0.1, (2, 1000))
    own = {
        name: calibration.calibrate(scores, match=0.01, review=0.1, references=references, ids=ids)
        for (name, ids), scores in zip(OF_EACH.items(), strangers, strict=True)
    }
    joint = channels.measured(own, strangers.T, references, match=0.02, review=0.2)
    both = Channels(joint, tuple(own.values()))
    return {name: ChannelJudge(both, name, Judge(own[name])) for name in own}


def test_two_channels_are_searched_into_one_data_set_and_judged_at_one_rate(tmp_path: Path) -> None:
    out = str(tmp_path / "matches")
    by = judges(REFERENCES)
    # An upload is the copy of reference 3 in one channel, another that of reference 7 in the other.
    for number, (name, copied, origin) in enumerate((("vae", 1, 3), ("sscd", 2, 7))):
        references, queries = unit(REFERENCES, 32, number), unit(QUERIES, 32, 10 + number)
        queries[copied] = references[origin]
        ids = OF_EACH[name]
        held = [
            write_embeddings(tmp_path / f"{name}-{side}", vectors, 2, side, **ids)
            for side, vectors in (("r", references), ("q", queries))
        ]
        execution = Execution.begin()
        made = search.run(held[0], held[1], out, execution, TOP_K, judge=by[name])
        assert made.matches == QUERIES * TOP_K
        again = search.run(held[0], held[1], out, Execution.begin(), TOP_K, judge=by[name])
        assert (again.searched, again.dataset.rows) == (0, made.dataset.rows)
    rows = Dataset.open(out).read(schemas.MATCHES)
    assert rows.num_rows == 2 * QUERIES * TOP_K
    assert rows.group_by(["query_uri", "reference_id", "channel"]).aggregate([]).num_rows == rows.num_rows
    joint = by["vae"].channels.joint
    assert set(rows["calibration_id"].to_pylist()) == {joint.calibration_id}
    matched = rows.filter(pc.equal(rows["verdict"], Verdict.MATCH.value))
    found = set(zip(*(matched[n].to_pylist() for n in ("channel", "query_uri", "reference_id")), strict=True))
    assert found >= {("vae", "/q/000001.jpg", "r000003"), ("sscd", "/q/000002.jpg", "r000007")}
    assert set(matched["false_positive_rate"].to_pylist()) == {np.float32(0.02).item()}
