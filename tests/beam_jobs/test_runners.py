"""The same jobs on every way of running them that can be started here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.portability.api import beam_runner_api_pb2

import id2
from beam_jobs import embed, engines, progress, runners, search
from id2.results import EmbedSummary, SubmittedJob
from id2core.errors import EngineError, OptionError, SearchError
from id2core.runs.execution import Execution
from id2core.runs.progress import Counts, tally
from id2core.search import background_rows, match_rows, shards
from id2core.search.background_rows import Backgrounds
from id2core.search.matching import SearchPlan
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.verdicts import calibration
from id2core.verdicts.judging import Judge
from id2core.verdicts.normalization import Normalization
from tests import preloaded
from tests.broken import broken_files
from tests.conftest import free_port, wait_until
from tests.descriptor_sets import IDS, unit, write_embeddings
from tests.drawing import draw_photos
from tests.embedding import embed_job
from tests.job_service import JobService

GPU = "worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver:5xx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a `python` whose workers start in milliseconds."""
    with preloaded.serving(tmp_path_factory.mktemp("bin")) as folder:
        yield folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[JobService]:
    with JobService.started(folder) as service:
        yield service


@pytest.fixture
def portable(service: JobService) -> list[str]:
    """Arguments for Beam's own job service and an external worker pool."""
    return service.arguments


PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.mark.parametrize("way", [pytest.param("worker processes", marks=pytest.mark.slow), "job service"])
def test_every_runner_gives_the_same_rows(
    way: str, request: pytest.FixtureRequest, photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    arguments = PROCESSES if way == "worker processes" else request.getfixturevalue("portable")
    for name, data in islice(broken_files().items(), 6):
        (photos / name).write_bytes(data)
    results = []
    shown: list[Counts] = []
    request.addfinalizer(tally.listen(lambda stage, counts: shown.append(counts)))
    execution = Execution.begin()
    for name, chosen in (("here", []), ("there", arguments)):
        spec = embed_job(
            str(photos), str(tmp_path / name), tiny_vae, device="cpu", dtype="float32", part_size=5
        )
        counts = embed.run(spec, execution, chosen)
        assert shown[-1].total == shown[-1].completed + shown[-1].rejected == counts.listed
        result = search.run(
            counts.embeddings, counts.embeddings, storage.join(spec.out, "matches"), execution, 3, chosen
        )
        matches = Dataset.open(storage.join(spec.out, "matches")).read(schemas.MATCHES)
        results.append((counts, result, matches))
    assert results[0] == results[1]
    assert results[0][2].num_rows == 3 * results[0][0].embedded == 36


@pytest.mark.slow
def test_ctrl_c_ends_worker_processes_in_one_line(tmp_path: Path) -> None:
    # A terminal sends the signal to the whole process group.
    draw_photos(tmp_path / "photos", 400)
    command = [sys.executable, "-m", "flows", "embed", "--images", "photos", "--out", "out"]
    process = subprocess.Popen(
        [*command, "--encoder", "mini", "--part-size=2", "--", *PROCESSES],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: any((tmp_path / "out/_staging/files/embeddings").glob("*")), 600, "a part")
    os.killpg(process.pid, signal.SIGINT)
    shown = "".join(process.communicate())
    assert process.returncode == 130
    assert [line for line in shown.splitlines() if line and not line.startswith("embed: ")] == [
        "interrupted: run the same command again to go on from here"
    ]
    group = ["pgrep", "--pgroup", str(process.pid)]
    wait_until(lambda: subprocess.run(group, capture_output=True).returncode == 1, 600, "their end")


# A worker that is a thread of the process which submits.
LOOPBACK = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


@pytest.mark.parametrize("way", [pytest.param("worker processes", marks=pytest.mark.slow), "loopback"])
def test_progress_is_true_wherever_the_work_is_done(
    way: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.05)
    shown: dict[str, list[Counts]] = {}
    stop = tally.listen(lambda stage, counts: shown.setdefault(stage, []).append(counts))
    request.addfinalizer(stop)
    arguments = {"worker processes": PROCESSES, "loopback": LOOPBACK}[way]
    images = draw_photos(tmp_path / "images", 12)
    spec = embed_job(str(images), str(tmp_path / "out"), "pdq", "none", part_size=3)
    uploads = embed.run(spec, Execution.begin(), arguments).embeddings
    background, plan = plan_both(tmp_path)
    _, matches = search.run_both(background, plan, arguments)
    assert matches.read(schemas.MATCHES)["background"].null_count == 0  # the workers knew what was committed
    assert uploads.rows == 12 and shown.keys() == {"embed", "search"}
    for stage, total in (("embed", 12), ("search", 2 * 8)):
        counts = [each.completed + each.rejected for each in shown[stage]]
        assert counts == sorted(counts) and counts[-1] == total == shown[stage][-1].total


def plan_both(folder: Path) -> tuple[SearchPlan, SearchPlan]:
    """Searches of a background and of references, eight blocks of uploads and one shard each."""
    references = write_embeddings(folder / "r", unit(90, 8, 0), 3, "r")
    background = write_embeddings(folder / "b", unit(20, 8, 2), 1, "b")
    queries = write_embeddings(folder / "q", unit(40, 8, 1), 8, "q")
    execution, k = Execution.begin(), 3
    first = background_rows.make(background, queries, str(folder / "backgrounds"), execution, k)
    chosen = calibration.calibrate(
        np.linspace(0.3, 0.6, 200),
        match=0.05,
        review=0.3,
        references=90,
        ids=IDS,
        normalization=Normalization(factor=0.5, k=k, background_id=shards.index_id(background)),
    )
    judge = Judge(chosen, Backgrounds.before(first))
    return first, match_rows.make(references, queries, str(folder / "matches"), execution, 3, judge)


def test_a_dataflow_template_asks_for_gpu_workers_and_our_container(
    gcs: str, photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    # Looking for credentials that are not there costs Beam 25 s of retries; with none it goes on anonymously.
    auth._Credentials._credentials_init = True
    where = f"gs://{gcs}/{tmp_path.name}"
    for photo in photos.iterdir():
        storage.write_bytes(f"{where}/images/{photo.name}", photo.read_bytes())
    spec = embed_job(f"{where}/images", f"{where}/out", tiny_vae, dtype="float32", part_size=5)
    arguments = [
        "--runner=DataflowRunner",
        "--project=id2-project",
        "--region=europe-west4",
        f"--temp_location={where}/temp",
        f"--staging_location={where}/staging",
        f"--template_location={where}/job.json",
        "--machine_type=n1-standard-8",
        "--sdk_container_image=europe-docker.pkg.dev/id2-project/id2/worker:0.1.0",
        f"--dataflow_service_options={GPU}",
        "--experiments=no_use_multiple_sdk_containers",
    ]
    assert (
        embed.write_template(spec, Execution.begin(), arguments)
        == runners.template_location(arguments)
        == f"{where}/job.json"
    )
    job = json.loads(storage.read_bytes(f"{where}/job.json"))
    [pool] = job["environment"]["workerPools"]
    [container] = pool["sdkHarnessContainerImages"]
    assert pool["machineType"] == "n1-standard-8"
    assert container["containerImage"].endswith("/id2/worker:0.1.0")
    experiments = job["environment"]["experiments"]  # one process, so one model, per GPU
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments
    assert GPU in job["environment"]["serviceOptions"]
    [staged] = [o.uri for o in storage.list_objects(f"{where}/staging") if o.uri.endswith("/pipeline.pb")]
    pipeline = beam_runner_api_pb2.Pipeline.FromString(storage.read_bytes(staged))
    names = {t.unique_name for t in pipeline.components.transforms.values()}
    assert {"Parts", "EmbedParts/Spread", "EmbedParts/Make", "Commit/AllDone", "Commit/Commit"} <= names


# What Beam raises where a worker process failed, shortened.
WORKER_FAILED = """Traceback (most recent call last):
  File "id2core/search/indexes.py", line 39, in check_name
id2core.errors.SearchError: no index 'tree': choose flat

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1623, in apache_beam.runners.common.DoFnRunner._reraise_augmented
id2core.errors.SearchError: no index 'tree': choose flat [while running 'Map(check_name)']
"""


def test_a_mistake_that_a_worker_process_meets_is_shown_as_one() -> None:
    with pytest.raises(SearchError) as caught, runners.running():
        raise RuntimeError(WORKER_FAILED)
    assert str(caught.value) == "no index 'tree': choose flat"
    with pytest.raises(RuntimeError, match="a bug"), runners.running():
        raise RuntimeError("a bug")


def _mistake(_: int) -> None:
    raise SearchError("no index 'tree': choose flat")


def test_a_mistake_in_this_process_is_shown_once_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SearchError) as caught, runners.running() as pipeline:
        _ = pipeline | beam.Create([1]) | beam.Map(_mistake)
    assert str(caught.value) == "no index 'tree': choose flat"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def _sleep(seconds: float, begun: str) -> None:
    Path(begun).touch()
    time.sleep(seconds)


def test_what_ends_the_wait_cancels_the_job(
    service: JobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signal comes while gRPC is at work: raised there, it leaves a channel that no one can ever close.
    monkeypatch.setattr(engines, "LOOK_SECONDS", 0.0)
    begun = tmp_path / "begun"

    def interrupt() -> None:
        wait_until(begun.exists, 600, "the job")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), runners.running(service.arguments) as pipeline:
        pipeline | beam.Create([600.0]) | beam.Map(_sleep, begun=str(begun))
    assert service.states()[-1] == "CANCELLED"


def test_a_job_service_that_is_gone_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SERVER_SECONDS", 2.0)
    begun = tmp_path / "begun"
    with JobService.started(folder) as service:

        def kill() -> None:
            wait_until(begun.exists, 600, "the job")
            service.process.kill()

        threading.Thread(target=kill, daemon=True).start()
        gone = pytest.raises(EngineError, match=r"the job server is gone .*may go on")
        with gone as caught, runners.running(service.arguments) as pipeline:
            pipeline | beam.Create([600.0]) | beam.Map(_sleep, begun=str(begun))
    assert "\n" not in str(caught.value)


def test_a_job_that_has_finished_nothing_is_spoken_of_once(
    portable: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "BEGUN_SECONDS", 0.5)
    monkeypatch.setattr(engines, "LOOK_SECONDS", 0.2)
    with runners.running(portable) as pipeline:
        pipeline | beam.Create([3.0]) | beam.Map(_sleep, begun=str(tmp_path / "begun"))
    [notice] = [record.getMessage() for record in caplog.records if record.name == "id2.engines"]
    assert "has finished nothing in its first 0.5 s" in notice and "free slots" in notice


def test_a_detached_job_ends_by_itself(
    service: JobService, photos: Path, tiny_vae: str, tmp_path: Path
) -> None:
    options = {"images": photos, "out": tmp_path / "out", "encoder": tiny_vae, "runner": "PortableRunner"}
    submitted = id2.embed(**options, beam_arguments=service.options, detach=True)
    assert isinstance(submitted, SubmittedJob) and submitted.job_id
    wait_until(lambda: service.states()[-1] == "DONE", 600, "the job")
    embeddings = Dataset.open(str(tmp_path / "out/embeddings"))
    assert (embeddings.rows, embeddings.run_id) == (12, submitted.run_id)
    again = id2.embed(**options, beam_arguments=service.options, detach=True)
    assert isinstance(again, EmbedSummary) and again.resumed
    assert not [path for path in (tmp_path / "out/_staging").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("runner", "arguments", "reason"),
    [
        (None, [], "Give --runner"),
        ("FlinkRunner", ["--flink_master=flink:8081"], "Give --job_endpoint"),
        ("PortableRunner", ["--job_endpoint=embed"], "Give --job_endpoint"),
        ("FlinkRunner", ["--job_endpoint=a:8099", "--environment_type=LOOPBACK"], "LOOPBACK"),
        ("DataflowRunner", ["--template_location=gs://a/b"], "--template_location"),
    ],
)
def test_a_job_that_would_end_with_the_command_is_not_left(
    runner: str | None, arguments: list[str], reason: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=reason):
        id2.embed(images=photos, out=tmp_path / "out", runner=runner, beam_arguments=arguments, detach=True)


def test_a_job_that_fails_or_is_not_accepted_is_one_line(
    portable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = pytest.raises(EngineError, match=r"the job failed: .*no number")
    with failed as caught, runners.running(portable) as pipeline:
        pipeline | beam.Create(["no number"]) | beam.Map(float)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(engines, "SERVER_SECONDS", 1.0)
    nobody = ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{free_port()}"]
    with pytest.raises(EngineError, match="no job server answers"), runners.running(nobody):
        pass


JAVA = """org.apache.flink.client.program.ProgramInvocationException: The main method caused an error
\tat org.apache.flink.client.ClientUtils.executeProgram(ClientUtils.java:108)
Caused by: java.util.concurrent.CompletionException: wrapped
Caused by: org.apache.flink.runtime.rest.util.RestClientException: Could not \x1b[2Jconnect
\t... 12 more
"""
# What Flink says where a worker raised, shortened.
WORKER_IN_JAVA = """java.lang.RuntimeException: The program failed
\tat org.apache.beam.runners.flink.FlinkPipelineRunner.run(FlinkPipelineRunner.java:62)
Caused by: java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in apache_beam.runners.common.DoFnRunner.process
ValueError: no number [while running 'Map(float)-ptransform-29']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.onNext(FnApiControlClient.java:180)
\t... 1 more
"""


def test_the_last_cause_of_an_engine_is_shown() -> None:
    assert engines.cause(JAVA) == r"RestClientException: Could not \x1b[2Jconnect"
    assert engines.cause(WORKER_IN_JAVA) == "ValueError: no number"
    assert engines.cause("Job is gone\n") == "Job is gone"
    assert engines.cause("") == "no reason was given"


def test_a_runner_that_loses_rows_is_refused() -> None:
    with pytest.raises(OptionError, match="loses rows"):
        runners.pipeline(["--runner=DaskRunner"])
