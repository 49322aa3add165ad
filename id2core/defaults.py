"""Defaults that settings and rooms share, each defined only here."""

from __future__ import annotations

from typing import Final

# The encoder that ships with the package.
ENCODER: Final = "mini"
# On a command line in place of a name: what belongs to the encoder, and nothing.
AUTO: Final = "auto"
NONE: Final = "none"
# In place of a joint calibration: the union bound of the calibrations of both channels.
UNION: Final = "union"
INDEX: Final = "flat"
# Share of the 10 best of an exact search that a compressed index finds, at least.
INDEX_RECALL: Final = 0.95
# What an estimate assumes: lists that an upload is compared with, and candidates that are scored exactly.
INDEX_PROBES: Final = 64
INDEX_CANDIDATES: Final = 400
# More of both than any index has use for. A worker holds the candidates of 4,096 uploads at once.
MOST_PROBES: Final = 2**16
MOST_CANDIDATES: Final = 10**4
TOP_K: Final = 10
# How far below the review threshold a scan stores pairs.
FLOOR_MARGIN: Final = 0.05
# Objects per part of a run.
PART_SIZE: Final = 4096
# Seconds of work that a killed run loses at most.
RECORD_SECONDS: Final = 120.0
# MiB that the references of a shard take in the memory of a worker.
SHARD_MEMORY: Final = 1024
# Hours until a later run removes what a killed one left.
LEFTOVER_HOURS: Final = 24.0
# Days before a night whose dated places are read again, and where a night begins.
LATE_DAYS: Final = 2
TIME_ZONE: Final = "UTC"
# Days that an option may reach back, a hundred years: the calendar has an end.
MOST_DAYS: Final = 36_525
# Bytes of the largest file that is read, and pixels of the largest picture that is decoded: above a photo of
# 100 megapixels, also where it is stored as it is.
MAX_BYTES: Final = 512 * 2**20
MAX_PIXELS: Final = 178_956_970
# MiB and processor time, in seconds, that decoding a small picture may take; `encoders.budget` adds to both
# for large files.
MAX_MEMORY: Final = 640
MAX_SECONDS: Final = 2.5
