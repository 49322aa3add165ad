"""One run at a time adds rows of a source to an `--out`; runs of other sources may do so beside it.

A run holds a lease: an object in `_staging/` that says who it is, and that it renews. A second run for the
same source is refused by name. The lease of a run that was killed does not count where its process was on
this machine, and elsewhere after three minutes without renewal, by the clocks of both machines: where these
differ by more, a lease does not count.

A lease keeps two runs from doing the same work twice. What keeps the data right where a lease is lost is the
commit, which counts every row and replaces no other run's commit. A job that is started from a template holds
no lease: no process of this program is there to renew it.

A job on a cluster may outlive the process that started it, and with that its lease. It asks `taken_over`
before each part, and makes no more once a later run is at work. The lease of a run that has ended well stays
while other runs have something staged, so that their jobs see it.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from id2core.errors import ID2Error, RunInProgressError
from id2core.runs import execution
from id2core.runs.execution import Execution
from id2core.runs.units import STAGING
from id2core.store import datasets, storage, strict_json

# How often a lease is renewed, and how long it counts after that.
RENEW_SECONDS, EXPIRE_SECONDS = 30.0, 180.0
_ATTEMPTS = 5
_NAME = "lease-"


class _Lease(BaseModel):
    """Who adds rows of a source.

    Attributes:
        run_id: the run.
        process: host, process id, when that was created.
        renewed: when it said so last.
        is_at_work: whether the run has checked what it was told, and makes rows.
        ended: whether the run has ended well.
    """

    run_id: str
    process: tuple[str, int, float]
    renewed: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    is_at_work: bool = False
    ended: bool = False

    def counts_for(self, run_id: str) -> bool:
        """Return whether the lease keeps another run away."""
        if self.run_id == run_id or self.ended:
            return False
        if self.process[0] == platform.node():
            return execution.is_alive(self.process)
        # A clock that is ahead must not keep others away until they have reached it.
        return abs((datetime.now(UTC) - self.renewed).total_seconds()) < EXPIRE_SECONDS

    def renewed_now(self, **change: bool) -> _Lease:
        """Return the lease as its holder writes it now."""
        return self.model_copy(update={"renewed": datetime.now(UTC), **change})

    def to_json(self) -> bytes:
        """Return the lease as it is stored."""
        return self.model_dump_json().encode()


@contextmanager
def held(out: str, source: str, run: Execution) -> Iterator[None]:
    """Be the only run that adds rows of a source to an `--out`, until the block ends.

    Args:
        out: parent of the data sets.
        source: URI of the source.
        run: who adds.

    Raises:
        RunInProgressError: another run does so.
    """
    uri = _uri(out, source)
    _acquire(uri, out, source, run.run_id)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(RENEW_SECONDS):
            with suppress(ID2Error, OSError):  # it may succeed at the next time
                lease, mark = _read(uri)
                if lease and lease.run_id == run.run_id:
                    storage.write_if(uri, lease.renewed_now().to_json(), mark)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        stop.set()
        thread.join()
        with suppress(ID2Error, OSError):
            _end(uri, out, run.run_id, well=ended)


def begin_work(out: str, source: str) -> None:
    """Say in the lease of this process, if it has one, that it makes rows from now on."""
    uri = _uri(out, source)
    for _ in range(_ATTEMPTS):  # the lease may be renewed between reading and writing it
        lease, mark = _read(uri)
        if not lease or lease.process != execution.this_process():
            return
        if storage.write_if(uri, lease.renewed_now(is_at_work=True).to_json(), mark):
            return


def taken_over(out: str, source: str, run_id: str) -> str | None:
    """Return the later run that makes rows of a source for an `--out`, or has done so; None if there is none.

    Args:
        out: parent of the data sets.
        source: URI of the source.
        run_id: the run whose job asks. Its rows may have another id than its lease, of a later second.
    """
    lease, _ = _read(_uri(out, source))
    if lease is None or not lease.is_at_work or _time(lease.run_id) <= _time(run_id):
        return None
    return lease.run_id if lease.ended or lease.counts_for(run_id) else None


def _time(run_id: str) -> str:
    """Return the time of a run_id, which sorts."""
    return run_id.partition("-")[0]


def _uri(out: str, source: str) -> str:
    return storage.join(out, STAGING, f"{_NAME}{datasets.digest_of(source)}.json")


def _end(uri: str, out: str, run_id: str, *, well: bool) -> None:
    """Give a lease back. It stays while other runs have something staged, see the module."""
    lease, mark = _read(uri)
    if not lease or lease.run_id != run_id:
        return
    staged = storage.entries(storage.join(out, STAGING), below=False)
    others = (not entry.uri.rpartition("/")[2].startswith(_NAME) for entry in staged)
    if well and lease.is_at_work and any(others):
        storage.write_if(uri, lease.renewed_now(ended=True).to_json(), mark)
    else:
        storage.delete(uri)


def _acquire(uri: str, out: str, source: str, run_id: str) -> None:
    for attempt in range(_ATTEMPTS):
        lease, mark = _read(uri)
        if lease and lease.counts_for(run_id):
            host, process, _ = lease.process
            raise RunInProgressError(
                f"run {lease.run_id} (process {process} on {host}) is adding {source} to {out}: start again "
                "when it has ended. Where it was killed, that is seen after three minutes at most"
            )
        new = _Lease(run_id=run_id, process=execution.this_process())
        if storage.write_if(uri, new.to_json(), mark):
            return
        time.sleep(0.1 * attempt)
    raise RunInProgressError(f"other runs keep adding {source} to {out}: start again when they have ended")


def _read(uri: str) -> tuple[_Lease | None, str]:
    """Return a lease and its mark; None for none, or one that is damaged."""
    try:
        data, mark = storage.read_marked(uri)
    except FileNotFoundError:
        return None, ""
    try:
        return _Lease.model_validate(strict_json.parse_object(data)), mark
    except (ValidationError, ValueError):
        return None, mark
