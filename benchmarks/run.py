"""Run all benchmarks and write their table into `benchmarks/README.md`.

Run `python -m benchmarks.run [--photos DIR] [--only NAME …] [--quick] [--long]`. Every benchmark is a
process of its own, so that neither memory nor threads of one reach another. With `--only` or `--quick`
the table is printed and the file stays as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Row

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NAMES = (
    "decode",
    "encoder",
    "embed",
    "translate",
    "search",
    "shards",
    "indexes",
    "closed_form",
    "training",
    "memory",
    "planning",
    "classes",
    "growth",
    "startup",
    "fuzz",
    "dashboard",
    "rejudging",
    "reprojection",
    "views",
)
VERSIONS = (
    "python",
    "torch",
    "diffusers",
    "apache-beam",
    "faiss-cpu",
    "faiss-gpu",
    "pyarrow",
    "numpy",
    "pillow",
)
QUICK = {
    "decode": ["--count", "1", "--rounds", "1"],
    "encoder": ["--count", "16", "--rounds", "1"],
    "embed": ["--count", "48", "--rounds", "1"],
    "translate": ["--count", "16", "--rounds", "1"],
    "search": ["--references", "5000", "--queries", "50", "--rounds", "2", "--job-rounds", "1"],
    "shards": ["--references", "3000", "--queries", "50", "--shard-memory", "1", "--rounds", "1"],
    "indexes": ["--references", "5000", "--queries", "50", "--index", "RR448,IVF16,RaBitQ"],
    "closed_form": ["--latents", "20000", "--size", "512", "--columns", "128"],
    "training": ["--classes", "200", "--size", "256", "--steps", "10", "--rounds", "1"],
    "memory": ["--sizes", "100", "400"],
    "planning": ["--sizes", "1000", "4000"],
    "classes": ["--sizes", "10000", "20000"],
    "growth": ["--nights", "2", "--uploads", "20", "--references", "10"],
    "startup": ["--rounds", "1"],
    "fuzz": ["--count", "100"],
    "dashboard": ["--uploads", "2000", "--days", "2", "--rounds", "1"],
    "rejudging": ["--uploads", "2000"],
    "reprojection": ["--latents", "4096", "--rounds", "1"],
    "views": ["--references", "2000", "--queries", "50", "--rounds", "1"],
}


def commands(options: argparse.Namespace) -> list[list[str]]:
    """Name and arguments of every benchmark that is to run."""
    photos = ["--photos", str(options.photos)] if options.photos else []
    chosen = [["decode"], *([["decode", *photos]] if photos else [])]
    chosen += [
        ["encoder", *photos],
        ["embed", *photos],
        ["translate", *photos],
        ["search"],
        ["shards"],
        ["indexes"],
        ["closed_form"],
        ["training"],
        ["memory", *photos],
        ["startup", *photos],
        ["fuzz"],
        ["dashboard"],
        ["planning"],
        ["classes"],
        ["growth"],
        ["rejudging"],
        ["reprojection"],
        ["views"],
    ]
    if options.long:
        chosen.append(["memory", *photos, "--encoder", "mini"])
    chosen = [command for command in chosen if command[0] in (options.only or NAMES)]
    return [[*command, *(QUICK[command[0]] if options.quick else [])] for command in chosen]


def run(command: list[str]) -> dict[str, Any]:
    """One benchmark in a process of its own; its line of JSON."""
    name, *arguments = command
    print(f"{name} {' '.join(arguments)}", file=sys.stderr, flush=True)
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    line = process.stdout.splitlines()[-1]
    print(line, file=sys.stderr, flush=True)
    return dict(json.loads(line))


def line_of(row: Row) -> str:
    bar, verdict = "", ""
    if row.bar:
        bar, verdict = str(row.bar), "met" if row.bar.met(row.ratio) else "**falls short**"
    return f"| {row.what} | {row.ours} | {row.other} | {row.ratio:.2f} | {bar} | {verdict} |"


def table(results: list[dict[str, Any]]) -> str:
    rows = [Row.from_json(raw) for result in results for raw in result["rows"]]
    head = "| what | ours | other side | ratio | bar | |\n|---|---:|---:|---:|---:|---|"
    return "\n".join([head, *map(line_of, rows)])


def facts(results: list[dict[str, Any]]) -> list[str]:
    """Figures that explain the ratios, in words."""
    by_name = {result["name"]: result for result in results}
    lines = []
    if encoder := by_name.get("encoder"):
        cosine = encoder["least_cosine_with_plain"]
        lines.append(
            "The latents of the two encoder sides agree: the smallest cosine over all pictures is "
            f"{cosine['ours']:.5f} ({cosine['ours_float32']:.5f} in float32)."
        )
    if embed := by_name.get("embed"):
        run = embed["median_run"]
        lines.append(
            f"The embed job loads its model in {embed['load_seconds']:.1f} s (not in the ratio). Of a run "
            f"of {run['seconds']:.1f} s, {run['start_up']:.1f} s pass until the first batch is encoded and "
            f"{run['finish']:.1f} s after the last; reading and decoding a photo costs "
            f"{embed['decode_ms']:.1f} ms of one core."
        )
    if search := by_name.get("search"):
        lines.append(
            f"The search job takes {search['job_seconds']:.1f} s for {search['reference_files']} reference "
            f"files; FAISS's call alone {search['faiss_seconds']:.2f} s."
        )
    return lines


def section(results: list[dict[str, Any]]) -> str:
    from id2core import environment

    here, versions = common.machine(), environment.versions()
    gpus = ", ".join(here["gpus"]) or "no GPU"
    amx = "with" if here["amx_bf16"] else "without"
    installed = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
    date = datetime.now(UTC).date().isoformat()
    where = (
        f"{date}. {here['cpu']} ({here['platform']}), {here['cores']} cores {amx} bf16 matrix units (AMX), "
        f"{here['memory_gib']} GiB, {gpus}; {here['torch_threads']} torch threads. An encoder runs in "
        f"{here['encoder_dtype']} here by default. {installed}."
    )
    return "\n\n".join([where, table(results), *facts(results)])


def replace_section(text: str, new: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README} has lost its markers {BEGIN} and {END}; put them back")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="run these and print the table")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: tries the scripts, measures nothing"
    )
    parser.add_argument("--long", action="store_true", help="measure memory with `mini`, too")
    options = parser.parse_args()
    new = section([run(command) for command in commands(options)])
    if options.only or options.quick:
        print(new)
    else:
        README.write_text(replace_section(README.read_text(), new))
        print(f"wrote {README}", file=sys.stderr)


if __name__ == "__main__":
    main()
