"""Run as a worker process of a job: `python -m beam_jobs.worker`, with the environment that Beam gives it."""

from __future__ import annotations

import logging
import os
import sys

from apache_beam.runners.worker import sdk_worker_main


def main() -> None:
    """Work until the job ends, or the process that started this one closes the connection."""
    # Beam warns in each process that no pickled session of a notebook was sent. None is needed.
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    sdk_worker_main.main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of an interrupted job still compute. If the interpreter ended now, they would abort the process.
    os._exit(0)


if __name__ == "__main__":
    main()
