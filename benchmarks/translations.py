"""Make the translations that accuracy is measured on: 1,000 photos by each of the two bundled models.

Run `python -m benchmarks.translations --photos DIR --out DIR [--count 1000]`, or `make translations
PHOTOS=DIR`. The photos are ones that no training run of the project has seen; each model gets prompts of
its own. Stopped and started again, it goes on. What it makes is not part of the project.

OUT/originals has links to the photos; OUT/mini-a and OUT/mini-b are what `id2 translate` writes:
`id2 scan --reference OUT/originals --queries OUT/mini-a/pictures --truth OUT/mini-a/truth.csv --out …`.
"""

from __future__ import annotations

import csv
from pathlib import Path

from beam_jobs import translate as job
from benchmarks import common
from flows import translate as flow
from id2core.oripid import models
from id2core.progress import Counts, tally
from id2core.training import captions
from id2core.training import photos as photo_folder

MODELS = ("mini-a", "mini-b")


def link(photos: Path, count: int, originals: Path) -> list[str]:
    """Links to the first `count` photos that nothing was trained on; their names."""
    names = photo_folder.split(photos).untrained[:count]
    if len(names) < count:
        raise SystemExit(f"{photos} has {len(names)} photos that nothing was trained on, not {count}")
    originals.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (originals / name).exists():
            (originals / name).symlink_to((photos / name).absolute())
    return names


def write_prompts(names: list[str], subjects: list[str], seed: int, file: Path) -> None:
    """A prompt for each photo, from a list of the model's own."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["uri", "prompt"])
        writer.writerows((name, captions.invented(subjects, i, seed)) for i, name in enumerate(names))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos with captions.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    originals = options.out / "originals"
    names = link(options.photos, options.count, originals)
    subjects = sorted(set(captions.read(options.photos).values()))

    def show(stage: str, counts: Counts) -> None:
        if counts.done % 64 == 0:
            print(f"{stage}: {counts.done}/{counts.total}", flush=True)

    tally.listen(show)
    for seed, model in enumerate(MODELS, start=100):
        prompts = options.out / f"{model}.csv"
        write_prompts(names, subjects, seed, prompts)
        out = options.out / model
        spec = job.TranslateJob(str(originals), str(out), models.find(model), str(prompts))
        summary = job.run(spec)
        truth = flow.write_truth.fn(str(out))
        print(f"{model}: {summary.translated} translated, {summary.rejected} rejected; {truth}")


if __name__ == "__main__":
    main()
