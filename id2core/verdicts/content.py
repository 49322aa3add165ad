"""From where on a picture has content, and which matches have none.

The threshold is taken from a corpus of honest pictures, the background of a calibration, and stands in the
calibration. A pair of which either picture is below it has the verdict `none`, whatever its score.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from id2core.encoders.hub import PDQ
from id2core.encoders.information import BLANK

# The reason beside such a verdict: the column `verdict_reason` of matches/.
NO_CONTENT: Final = "no_content"
# Share of the background's pictures that may be called without content.
SHARE: Final = 0.001
# The threshold lies in between, whatever the background holds: a corpus of blank pages is no measure of them.
LEAST: Final = BLANK
MOST: Final = 0.15
# Meta's limit of quality, of 100, below which a hash of PDQ is not to be matched.
PDQ_LEAST: Final = 0.5


def threshold(encoder_id: str, information: NDArray[np.floating]) -> float | None:
    """Return the least information of a picture with content.

    Args:
        encoder_id: of the pictures; PDQ's own limit is fixed.
        information: float[n] of honest pictures, NaN where it is not known.

    Returns:
        The largest value within the bounds that at most `SHARE` of the pictures are below. None where the
        information of no picture is known.
    """
    known = np.sort(information[np.isfinite(information)])
    if not known.size:
        return None
    if encoder_id.startswith(f"{PDQ}-"):
        return PDQ_LEAST
    return float(np.clip(known[int(SHARE * known.size)], LEAST, MOST))


def without(information: NDArray[np.floating], least: float | None) -> NDArray[np.bool_]:
    """Return which pictures, of information float[n], have no content; what is not known has some."""
    if least is None:
        return np.zeros(len(information), bool)
    return np.asarray(information < least)
