from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from id2core.errors import FinetuneError, GradientError, ID2Error, OptionError, TranslatorError
from id2core.options import Options, valid_values
from id2core.training.config import FinetuneConfig, GradientConfig, ResolvedGradientConfig
from id2core.translation.config import TranslationConfig
from id2core.translation.spec import DiffusionModel

CONFIGS: list[type[Options]] = [GradientConfig, FinetuneConfig, TranslationConfig, DiffusionModel]


@pytest.mark.parametrize(
    ("kind", "given", "error", "message"),
    [
        (GradientConfig, {"epochs": 0}, GradientError, r"^epochs is 0: choose 1 or more$"),
        (GradientConfig, {"patience": 0}, GradientError, r"^patience is 0: choose 1 or more, or None$"),
        (GradientConfig, {"loss": "triplet"}, GradientError, r"choose cosface, circle, softmax$"),
        (GradientConfig, {"ema": 2}, GradientError, r"^ema is 2: choose 0 or more, to 1$"),
        (GradientConfig, {"lr": "fast"}, GradientError, r"^lr is 'fast': choose above 0$"),
        (GradientConfig, {"lr": 0, "seed": -1}, GradientError, r"^lr is 0: .*; seed is -1: "),
        (GradientConfig, {"speed": 3}, GradientError, r"^there is no speed: choose from loss, "),
        (FinetuneConfig, {"steps": 0}, FinetuneError, r"^steps is 0: choose 1 or more$"),
        (TranslationConfig, {"format": "gif"}, OptionError, r"^format is 'gif': choose jpeg, png$"),
        (DiffusionModel, {"name": "x"}, TranslatorError, r"^source is missing$"),
        (ResolvedGradientConfig, {"init": "random"}, GradientError, r"^data is missing$"),
    ],
)
def test_a_wrong_option_raises_one_readable_line(
    kind: type[Options], given: dict[str, Any], error: type[ID2Error], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**given)


def test_a_changed_copy_is_checked_and_remembers_what_was_given() -> None:
    config = GradientConfig(batch=8)
    assert config.replace(lr=1.0) == GradientConfig(batch=8, lr=1.0)
    assert config.replace(lr=1.0).model_fields_set == {"batch", "lr"}
    with pytest.raises(GradientError, match="a batch of 7 with 4"):
        config.replace(batch=7)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_says_what_it_means_and_accepts_its_default(kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description and field.description.endswith("."), name
    if not any(field.is_required() for field in kind.model_fields.values()):
        assert kind(**kind().model_dump()) == kind()


def test_what_limits_a_field_is_said_in_words() -> None:
    fields = GradientConfig.model_fields | DiffusionModel.model_fields
    words = {name: valid_values(field) for name, field in fields.items()}
    assert words["strength"] == "above 0, to 1, or None" and words["size"] == "8 or more, a multiple of 8"
    assert words["guidance"] == "1 (none) or more" and words["name"] == ""


def test_options_import_no_torch() -> None:
    modules = sorted({"id2core.translation.models", *(kind.__module__ for kind in CONFIGS)})
    script = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
