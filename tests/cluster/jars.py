"""One jar out of a jar and its class path.

Flink sends each jar of the job server to the job manager and to every task manager, for every job, and waits
some 40 ms for each: 15 s for 160 jars. Beam's own job server is one jar.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

MANIFEST, SERVICES = "META-INF/MANIFEST.MF", "META-INF/services/"
# Signatures of single jars, which do not hold for the whole.
_SIGNATURE = re.compile(r"META-INF/[^/]+\.(SF|RSA|DSA|EC)", re.IGNORECASE)


def whole(jar: Path, folder: Path) -> Path:
    """Return a jar with all that a jar's manifest names as its class path; the jar itself if that is nothing.

    Args:
        jar: the jar.
        folder: where the new one is made, once.
    """
    named = _attribute(jar, "Class-Path").split()
    if not named:
        return jar
    parts = [jar, *(jar.parent / name for name in named)]
    key = hashlib.sha256("\n".join(f"{p} {p.stat().st_size}" for p in parts).encode()).hexdigest()[:16]
    made = folder / f"job-server-{key}.jar"
    if not made.exists():
        partial = made.with_suffix(".partial")
        _merge(parts, partial, _attribute(jar, "Main-Class"))
        partial.rename(made)
    return made


def _attribute(jar: Path, name: str) -> str:
    """Return an attribute of a jar's manifest; empty if there is none."""
    with zipfile.ZipFile(jar) as archive:
        lines = archive.read(MANIFEST).decode().replace("\r\n", "\n").replace("\n ", "").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith(f"{name}: ")), "")


def _merge(jars: Iterable[Path], made: Path, main: str) -> None:
    """Write the entries of jars to one: of equal names the first, and all lines of lists of services."""
    services: dict[str, list[bytes]] = defaultdict(list)
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        target.writestr(MANIFEST, f"Manifest-Version: 1.0\nMain-Class: {main}\nMulti-Release: true\n")
        names = {MANIFEST}
        for jar in jars:
            with zipfile.ZipFile(jar) as source:
                for entry in source.infolist():
                    if entry.filename.startswith(SERVICES) and not entry.is_dir():
                        services[entry.filename].append(source.read(entry))
                    elif entry.filename not in names and not _SIGNATURE.fullmatch(entry.filename):
                        names.add(entry.filename)
                        target.writestr(entry.filename, source.read(entry))
        for name, lines in services.items():
            target.writestr(name, b"\n".join(lines))
