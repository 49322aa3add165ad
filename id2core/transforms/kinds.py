"""Kinds of transforms that can be trained, by name; this module imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

HeadKind = Literal[
    "linear", "mlp-1", "mlp-2", "mlp-3", "mlp-4", "mlp-5", "mlp-6", "mlp-7", "convolution", "attention"
]
LINEAR: HeadKind = "linear"
ALL: tuple[HeadKind, ...] = get_args(HeadKind)
MLP = tuple(kind for kind in ALL if kind.startswith("mlp-"))
KINDS = tuple(kind for kind in ALL if kind != LINEAR)
