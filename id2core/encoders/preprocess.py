"""What happens between a file's pixels and an encoder's input."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from id2core.encoders import images


@dataclass(frozen=True)
class Preprocess:
    """How pixels become an encoder's input.

    Attributes:
        size: side of the square that the picture is stretched to, in pixels.
        mean, std: per channel, over values in [0,1]; ½ and ½ give [−1,1].
    """

    size: int = 256
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def preprocess_id(self) -> str:
        """The recipe by name: how a file is decoded, the size, and the hash of the scaling if unusual."""
        usual = (self.mean, self.std) == ((0.5,) * 3, (0.5,) * 3)
        scaling = "pm1" if usual else hashlib.sha256(repr((self.mean, self.std)).encode()).hexdigest()[:8]
        return f"{images.RECIPE}-{self.size}-{scaling}"
