"""Start everything that a nightly scan needs on this machine, and one night of the bundled demo: `make up`.

    python infra/up.py                     server, worker, and deployments as processes; Ctrl-C ends them
    python infra/up.py deploy --out PLACE  only deploy to the server of PREFECT_API_URL and start one night

`make up` prefers `infra/compose.yaml`, which calls the second form, where Docker Compose is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import id2core

ROOT = Path(__file__).resolve().parent.parent
PREFECT = [sys.executable, "-m", "prefect"]
POOL, GPU_POOL = "id2", "id2-gpu"
NIGHTLY = "nightly/nightly"
DEMO = Path(id2core.__file__).parent / "data" / "demo"
_START_SECONDS, _END_SECONDS = 180, 30


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["all", "deploy"], default="all")
    parser.add_argument("--out", default="out/up", help="where the night writes; default: out/up")
    parser.add_argument("--home", default="out/prefect", help="Prefect's own files; default: out/prefect")
    parser.add_argument("--port", type=int, default=4200, help="of Prefect's UI and API")
    options = parser.parse_args()
    if options.command == "deploy":
        deploy(options.out, os.environ)
    else:
        run_all(options.out, Path(options.home), options.port)


def run_all(out: str, home: Path, port: int) -> None:
    """Run a server and a worker until Ctrl-C or SIGTERM, and start one night."""
    environment = os.environ | {
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
    }
    home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as processes:
        arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = processes.enter_context(process(arguments, environment))
        wait_for(environment["PREFECT_API_URL"] + "/health", server)
        deploy(str(Path(out).resolve()), environment)
        arguments = ["worker", "start", "--pool", POOL, "--type", "process"]
        worker = processes.enter_context(process(arguments, environment | {"ID2_HOME": str(ROOT)}))
        print(
            f"\nOne night of the demo runs: http://127.0.0.1:{port}/runs\nIt writes {out}. Ctrl-C ends all.\n"
        )
        while server.poll() is None and worker.poll() is None:
            time.sleep(1)
        sys.exit("The server or the worker has ended; see above.")


def deploy(out: str, environment: Mapping[str, str]) -> None:
    """Make the work pool and the deployments, and start one night that scans the demo into `out`."""
    if out.startswith("gs://"):
        create_bucket(out.removeprefix("gs://").partition("/")[0], environment["STORAGE_EMULATOR_HOST"])
    # A value of ID2_HOME that is found here would be written into the deployments.
    there = {name: value for name, value in environment.items() if name != "ID2_HOME"}
    for pool in (POOL, GPU_POOL):
        prefect(there, "work-pool", "create", pool, "--type", "process", "--overwrite")
    prefect(there, "deploy", "--all", "--prefect-file", "infra/prefect.yaml")
    subprocess.run([sys.executable, "infra/automations.py"], cwd=ROOT, env=there, check=True)
    places = {"reference": [str(DEMO / "references")], "queries": [str(DEMO / "uploads")], "out": out}
    parameters = [
        word for name, place in places.items() for word in ("--param", f"{name}={json.dumps(place)}")
    ]
    prefect(there, "deployment", "run", NIGHTLY, *parameters)


def prefect(environment: Mapping[str, str], *arguments: str) -> None:
    """Run `prefect …` in the folder that has infra/ and flows/."""
    subprocess.run([*PREFECT, *arguments], cwd=ROOT, env=environment, check=True)


@contextlib.contextmanager
def process(arguments: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`prefect …` in the background, ended with the block."""
    # A session of its own: Ctrl-C reaches this process alone, which ends the worker before the server.
    started = subprocess.Popen([*PREFECT, *arguments], cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers; end this program where it has ended or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    sys.exit(f"{url} does not answer. Is its port taken? Choose another with --port")


def create_bucket(name: str, emulator: str) -> None:
    """Create a bucket in an emulator of Google Cloud Storage, unless it is there."""
    request = urllib.request.Request(
        f"{emulator}/storage/v1/b?project=local",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:  # it is there
            raise


if __name__ == "__main__":
    main()
