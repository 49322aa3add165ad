"""The `id2` command, also `python -m flows`."""

from __future__ import annotations

import signal


def main() -> None:
    """Load the commands and run one. Ctrl-C while they are loaded ends the process without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where the signal is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flows.cli import app

    signal.signal(signal.SIGINT, handler)
    app()


if __name__ == "__main__":
    main()
