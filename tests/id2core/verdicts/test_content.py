"""The threshold of content, and verdicts of pictures below it."""

from __future__ import annotations

import numpy as np
import pytest

from id2core.verdicts import calibration, content
from id2core.verdicts.calibration import Calibration

IDS = {"encoder_id": "e-1", "transform_id": "t", "preprocess_id": "p"}


def test_at_most_the_stated_share_of_honest_pictures_is_below() -> None:
    honest = np.random.default_rng(0).uniform(0.09, 1, 4000)
    least = content.threshold("e-1", honest)
    assert least is not None and content.LEAST < least < content.MOST
    assert content.without(honest, least).sum() == 4


@pytest.mark.parametrize(("share", "least"), [(0.0, content.LEAST), (1.0, content.MOST)])
def test_no_corpus_moves_it_far(share: float, least: float) -> None:
    assert content.threshold("e-1", np.full(100, share)) == least


def test_pdq_has_its_own_and_what_is_not_known_has_content() -> None:
    assert content.threshold("pdq-0123456789ab", np.array([0.9, np.nan])) == content.PDQ_LEAST
    assert content.threshold("e-1", np.array([np.nan])) is None
    assert content.without(np.array([0.0, np.nan]), 0.1).tolist() == [True, False]
    assert content.without(np.array([0.0]), None).tolist() == [False]


def test_a_calibration_without_the_threshold_keeps_its_name() -> None:
    made: Calibration = calibration.calibrate(
        np.linspace(0, 1, 200), match=0.05, review=0.3, references=9, ids=IDS
    )
    known = made.model_copy(update={"content": 0.1})
    assert made.calibration_id != known.calibration_id and "content" not in made._facts()
