"""The whole translate job against a bare loop of its pipeline over pictures that are already decoded.

Run `python -m benchmarks.translate [--photos DIR] [--count 128] [--rounds 3] [--model mini-a]`; prints one
line of JSON.

The job lists, reads, hashes, decodes, finds prompts, translates, writes pictures and Parquet, and commits.
The loop does nothing but call the diffusers pipeline, loaded from the same directory in the same precision
by `AutoPipelineForImage2Image`, on batches of the same size that lie in memory. The ratio is the job's
images/s over the loop's, once both models are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

from beam_jobs import translate
from beam_jobs.translate import TranslateJob
from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.runs.execution import Execution
from id2core.translation import loading, models
from id2core.translation.translators import Translator

BAR = Bar(0.9)
PROMPT = "a dark mostly blue photo of a dress"


def bare_pipeline(translator: Translator) -> Any:
    """The pipeline as diffusers loads it, in the precision that the job uses."""
    folder, _ = loading.locate(translator.model)
    pipeline = AutoPipelineForImage2Image.from_pretrained(folder, torch_dtype=translator.pipeline.dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(translator.pipeline.device)


def loop(pipeline: Any, translator: Translator, pictures: list[Image.Image]) -> Callable[[], None]:
    size, model = translator.batch_size, translator.model

    def work() -> None:
        for start in range(0, len(pictures), size):
            batch = pictures[start : start + size]
            generators = [torch.Generator().manual_seed(i) for i in range(len(batch))]
            pipeline(
                prompt=[PROMPT] * len(batch),
                image=batch,
                strength=model.strength,
                num_inference_steps=model.steps,
                guidance_scale=model.guidance,
                generator=generators,
            )

    return work


def jobs(images: Path, outs: Path, model: str) -> Iterator[TranslateJob]:
    """The same job again and again, each time with another place to write to."""
    prompts = outs / "prompts.txt"
    prompts.write_text(PROMPT)
    number = 0
    while True:
        yield TranslateJob(str(images), str(outs / f"{number}"), models.find(model), str(prompts))
        number += 1


def measure(images: Path, outs: Path, count: int, rounds: int, model: str) -> None:
    make = jobs(images, outs, model)
    translator = loading.load(models.find(model))
    square = (translator.model.size,) * 2
    pixels = common.decoded(images, count, square[0])
    pipeline = bare_pipeline(translator)
    bare = loop(pipeline, translator, [Image.fromarray(p) for p in pixels])
    loop(pipeline, translator, [Image.fromarray(p) for p in pixels[: translator.batch_size]])()
    summary = translate.run(next(make), Execution.begin())
    if summary.rejected:
        raise SystemExit(f"{summary.rejected} benchmark photos were rejected")
    times = common.interleaved(
        {"job": lambda: translate.run(next(make), Execution.begin()), "loop": bare}, rounds
    )
    rates = {name: [count / s for s in seconds] for name, seconds in times.items()}
    job, other = median(rates["job"]), median(rates["loop"])
    common.report(
        "translate",
        [
            Row(
                f"translate job, {count:,} photos by {model}, model loaded ÷ bare diffusers pipeline",
                f"{job:.2f} images/s",
                f"{other:.2f} images/s",
                common.median_ratio(rates["job"], rates["loop"]),
                BAR,
            )
        ],
        images=count,
        batch_size=translator.batch_size,
        dtype=str(translator.pipeline.dtype),
        strength=translator.model.strength,
        steps=translator.model.steps,
    )


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--count", type=int, default=128, help="photos of the job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="mini-a")
    options = parser.parse_args()
    with (
        common.photo_folder(options.photos, options.count) as images,
        TemporaryDirectory(prefix="id2-bench-") as outs,
    ):
        measure(images, Path(outs), options.count, options.rounds, options.model)


if __name__ == "__main__":
    main()
