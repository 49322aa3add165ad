"""Content Credentials (C2PA): what a picture file says about its own origin, and whether a signature holds.

A manifest is written by whoever made the file. It is a claim beside a picture, and changes no score of the
picture itself. All that it can add is one more picture to look at: the thumbnail of a parent.
`decoder_pool.credentials` reads it in a process with limits of memory and time and without network. This
module needs the extra `c2pa` only in `read`.

Source: C2PA specification 2.2, and the validation states of c2pa-rs.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

# Characters of a text that a manifest gives.
MOST_TEXT: Final = 200
# Bytes of a thumbnail that is read out, and pixels of one that is decoded. c2pa-rs makes the longer side
# 1,024 pixels.
MOST_THUMBNAIL: Final = 4 * 2**20
MOST_THUMBNAIL_PIXELS: Final = 2048 * 2048


class CredentialState(StrEnum):
    """What is known of the manifest of a picture."""

    NONE = "none"  # the file has no manifest
    REMOTE = "remote"  # the file only names a place where its manifest would be; nothing asks there
    UNREADABLE = "unreadable"  # damaged, or reading it took more memory or time than it may
    INVALID = "invalid"  # the picture or the manifest was changed after signing, or the signature is forged
    UNTRUSTED = "untrusted"  # intact, and signed by somebody for whom no trusted authority vouches
    TRUSTED = "trusted"  # intact, and the signer's certificate leads to the trust list


@dataclass(frozen=True)
class Credentials:
    """What a manifest says.

    Attributes:
        state: how far to believe the rest.
        generator: the program that wrote the manifest, by its own word.
        digital_source_type: how the picture came to be, by the same word: a name of IPTC's list such as
            `trainedAlgorithmicMedia`, or a URL of another list.
        parent_thumbnail: a file of up to `MOST_THUMBNAIL` bytes that is said to be a small picture of the
            parent, if it was asked for. Its bytes are a stranger's, too.
    """

    state: CredentialState
    generator: str | None = None
    digital_source_type: str | None = None
    parent_thumbnail: bytes | None = None


NO_CREDENTIALS: Final = Credentials(CredentialState.NONE)


@functools.cache
def is_available() -> bool:
    """Return whether the extra `c2pa` is installed."""
    return importlib.util.find_spec("c2pa") is not None


# The description box of a manifest store, and the property of XMP that names one elsewhere.
_MARKS: Final = (b"jumdc2pa", b"dcterms:provenance")
# Pieces of a file that are looked at. A file that hides its manifest behind more has none.
_MOST_PIECES: Final = 1000


def may_have(data: bytes, kind: str) -> bool:
    """Return whether a picture file may have a manifest; takes microseconds for a JPEG, a PNG, or a WebP.

    Args:
        data: the whole file.
        kind: its format, as `images.Decoded` has it.
    """
    if kind not in _MEDIA_TYPES:
        return False
    pieces = _PIECES[kind](data) if kind in _PIECES else iter((data,))
    return any(mark in piece for piece in pieces for mark in _MARKS)


_MEDIA_TYPES: Final = {
    kind: f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "tiff", "avif", "heif")
}


def _jpeg_pieces(data: bytes) -> Iterator[bytes]:
    """Segments of a JPEG's header that hold XMP (APP1) or JUMBF (APP11)."""
    place = 2
    for _ in range(_MOST_PIECES):
        marker, length = data[place + 1 : place + 2], int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place : place + 1] != b"\xff" or marker in (b"\xda", b"\xd9"):
            return
        if marker in (b"\xe1", b"\xeb"):
            yield data[place : place + 2 + length]
        place += 2 + length


def _png_pieces(data: bytes) -> Iterator[bytes]:
    """Chunks of a PNG before its pixels that hold XMP or JUMBF."""
    place = 8
    for _ in range(_MOST_PIECES):
        name, length = data[place + 4 : place + 8], int.from_bytes(data[place : place + 4], "big")
        if len(name) < 4 or name == b"IDAT":
            return
        if name in (b"iTXt", b"caBX"):
            yield data[place : place + 8 + length]
        place += 12 + length


def _webp_pieces(data: bytes) -> Iterator[bytes]:
    """Chunks of a WebP that hold XMP or JUMBF."""
    place = 12
    for _ in range(_MOST_PIECES):
        name, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if len(name) < 4:
            return
        if name in (b"XMP ", b"C2PA"):
            yield data[place : place + 8 + length]
        place += 8 + length + length % 2


_PIECES: Final = {"jpeg": _jpeg_pieces, "png": _png_pieces, "webp": _webp_pieces}


def load() -> bool:
    """Load the library and return whether it works."""
    try:
        _context("")
    # A library of another system fails in its own ways.
    except Exception:
        return False
    return True


def read(data: bytes, kind: str, trust: str = "", thumbnail: bool = False) -> Credentials:
    """Read and validate the manifest of a picture file; asks nothing of the network.

    `decoder_pool.credentials` is this function for files of strangers: the library is native code.

    Args:
        data: the whole file.
        kind: its format, as `images.Decoded` has it.
        trust: certificates in PEM of whom to trust; nobody by default.
        thumbnail: whether to read the thumbnail of the parent.

    Raises:
        ImportError: the extra `c2pa` is missing.
    """
    import c2pa

    if kind not in _MEDIA_TYPES:
        return NO_CREDENTIALS
    try:
        with c2pa.Reader(_MEDIA_TYPES[kind], io.BytesIO(data), context=_context(trust)) as reader:
            store = json.loads(reader.json())
            image = _parent_thumbnail(reader, store) if thumbnail else None
            return Credentials(_state(store), _generator(store), _source_type(store), image)
    except c2pa.C2paError.ManifestNotFound:
        return NO_CREDENTIALS
    except c2pa.C2paError as error:
        # The library has a kind of its own for a failed fetch, and none for a fetch that is off.
        remote = isinstance(error, c2pa.C2paError.RemoteManifest) or str(error).startswith("Remote:")
        return Credentials(CredentialState.REMOTE if remote else CredentialState.UNREADABLE)
    # A manifest may be of any form, as long as its writer has signed it.
    except Exception:
        return Credentials(CredentialState.UNREADABLE)


# No fetch of manifests, of revocations, or of documents that identities name. No host is allowed, so that a
# kind of request that these do not name is refused, too.
_SETTINGS: Final[dict[str, Any]] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {
        "allowed_network_hosts": [],
        "allow_redirects": False,
        "decode_identity_assertions": False,
        "max_decompressed_manifest_size_in_mb": 8,
    },
}


@functools.lru_cache(maxsize=2)
def _context(trust: str) -> Any:
    import c2pa

    anchors = {"trust": {"trust_anchors": trust}} if trust else {}
    return c2pa.Context(c2pa.Settings.from_dict(_SETTINGS | anchors))


# What a certificate may lack while the signature is its own and fits the picture. A manifest without a
# timestamp has the second and third as soon as its certificate has expired.
_OF_THE_SIGNER: Final = frozenset(
    ("signingCredential.untrusted", "signingCredential.expired", "claimSignature.outsideValidity")
)


def _state(store: dict[str, Any]) -> CredentialState:
    state = store.get("validation_state")
    if state == "Trusted":
        return CredentialState.TRUSTED
    if state == "Valid":
        return CredentialState.UNTRUSTED
    results = store["validation_results"]
    active = results["activeManifest"]
    parents = (delta["validationDeltas"] for delta in results.get("ingredientDeltas") or ())
    failures = {status["code"] for found in (active, *parents) for status in found["failure"]}
    proven = {status["code"] for status in active["success"]}
    if failures and failures <= _OF_THE_SIGNER and "claimSignature.validated" in proven:
        return CredentialState.UNTRUSTED
    return CredentialState.INVALID


def _text(value: object) -> str | None:
    """Return a text of a manifest in one line of bounded length, as valid Unicode; None for nothing."""
    text = " ".join(value.split())[:MOST_TEXT] if isinstance(value, str) else ""
    return text.encode(errors="replace").decode() or None


def _generator(store: dict[str, Any]) -> str | None:
    manifest = store["manifests"][store["active_manifest"]]
    for info in manifest.get("claim_generator_info") or ():
        return _text(" ".join(str(info[name]) for name in ("name", "version") if info.get(name)))
    return _text(manifest.get("claim_generator"))


# Lists of source types whose names need no URL before them.
_KNOWN_LISTS: Final = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/",
    "https://cv.iptc.org/newscodes/digitalsourcetype/",
    "http://c2pa.org/digitalsourcetype/",
)
_MOST_PARENTS: Final = 16


def _source_type(store: dict[str, Any]) -> str | None:
    """Return the source type that the manifest states, or else the nearest parent that states one.

    Where one manifest states several, one of an algorithm counts.
    """
    for manifest in _with_parents(store):
        types = [_text(action.get("digitalSourceType")) for action in _actions(manifest)]
        stated = sorted(filter(None, types), key=lambda name: "lgorithmic" not in name)
        if stated:
            known = next((prefix for prefix in _KNOWN_LISTS if stated[0].startswith(prefix)), "")
            return stated[0].removeprefix(known) or stated[0]
    return None


def _with_parents(store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    label = store["active_manifest"]
    for _ in range(_MOST_PARENTS):
        manifest = store["manifests"].get(label)
        if manifest is None:
            return
        yield manifest
        label = next((parent.get("active_manifest") for parent in _parents(manifest)), None)


def _parents(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in manifest.get("ingredients") or () if each.get("relationship") == "parentOf"]


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if str(assertion.get("label")).startswith("c2pa.actions"):
            yield from assertion["data"].get("actions") or ()


class _Thumbnail(io.BytesIO):
    """A file in memory that takes no more bytes than a thumbnail may have."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MOST_THUMBNAIL:
            raise ValueError(f"more than {MOST_THUMBNAIL} bytes")
        return super().write(data)


def _parent_thumbnail(reader: Any, store: dict[str, Any]) -> bytes | None:
    """Return the thumbnail of the first parent that has one; None where it cannot be read."""
    try:
        for parent in _parents(store["manifests"][store["active_manifest"]]):
            place = (parent.get("thumbnail") or {}).get("identifier", "")
            if place.startswith("self#jumbf="):
                image = _Thumbnail()
                reader.resource_to_stream(place, image)
                return image.getvalue() or None
    # What else the manifest says holds without it.
    except Exception:
        return None
    return None
