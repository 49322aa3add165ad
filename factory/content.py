"""Take the least information of a picture with content from a folder of photos, into a calibration.

Run `python -m factory.content --images DIR --calibration id2core/data/mini/calibration.json`, after
`factory.bundle` and whenever `id2core.encoders.information` or the decoding of pictures changes. Everything
else in the calibration stays; its calibration_id follows. Prints which of the photos have no content.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from id2core.encoders import images, information
from id2core.encoders.images import Decoded
from id2core.verdicts import calibration, content


def measure(file: Path) -> float:
    """Return the information of a picture file; NaN where it is no picture."""
    decoded = images.decode(file.read_bytes(), information.SIDE)
    return information.measure(decoded.pixels) if isinstance(decoded, Decoded) else np.nan


def main() -> None:
    """Write the threshold, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of honest photos")
    parser.add_argument("--calibration", type=Path, required=True, help="file that gets the threshold")
    options = parser.parse_args()
    files = sorted(path for path in options.images.iterdir() if path.suffix == ".jpg")
    with ThreadPoolExecutor() as pool:
        measured = np.array(list(pool.map(measure, files)))
    chosen = calibration.load(str(options.calibration))
    least = content.threshold(chosen.encoder_id, measured)
    made = chosen.model_copy(update={"content": least})
    made.save(str(options.calibration))
    below = [path.name for path, empty in zip(files, content.without(measured, least), strict=True) if empty]
    facts = {"photos": len(files), "content": least, "without": below, "calibration_id": made.calibration_id}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
