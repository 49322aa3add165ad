"""Content Credentials: what they say, whom to believe, and that they cost a picture nothing but a column."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import id2
from id2core.encoders import credentials, images, pictures, trust_list
from id2core.encoders.budget import DEFAULT_LIMITS, Limits
from id2core.encoders.credentials import MOST_THUMBNAIL, NO_CREDENTIALS, Credentials, CredentialState
from id2core.encoders.decoder_pool import DecoderPool
from id2core.encoders.images import Decoded
from id2core.encoders.pictures import Picture, read_picture
from id2core.encoders.views import WHOLE
from id2core.errors import OptionError
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from tests.broken import encode
from tests.drawing import collage, draw_photos, scene

pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
from tests.signing import Signer

AI = "trainedAlgorithmicMedia"
CLAIM = Credentials(CredentialState.UNTRUSTED, "Painter 1.2", AI)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def authority() -> Signer:
    return Signer.issued("Authority")


@pytest.fixture(scope="module")
def signer(authority: Signer) -> Signer:
    return Signer.issued("Studio", authority)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return encode(scene(1), "JPEG")


@pytest.fixture(scope="module")
def signed(signer: Signer, plain: bytes) -> bytes:
    return signer.sign(plain)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "tiff", "avif", "heif"])
def test_a_manifest_is_found_in_every_format(kind: str, signer: Signer, pool: DecoderPool) -> None:
    data = encode(scene(1), kind.upper())
    file = signer.sign(data, kind)
    assert not credentials.may_have(data, kind)
    assert credentials.may_have(file, kind)
    assert pool.credentials(data, kind) == NO_CREDENTIALS
    assert pool.credentials(file, kind) == CLAIM
    with_pixels, without = pool.decode(file, 64), pool.decode(data, 64)
    assert isinstance(with_pixels, Decoded)
    assert isinstance(without, Decoded)
    assert np.array_equal(with_pixels.pixels, without.pixels)


def test_only_a_signer_of_the_trust_list_is_trusted(
    authority: Signer, signed: bytes, plain: bytes, pool: DecoderPool, tmp_path: Path
) -> None:
    (tmp_path / "list.pem").write_text(authority.pem * 2)
    pem = trust_list.read(str(tmp_path / "list.pem"))
    namesake = Signer.issued("Studio", Signer.issued("Authority"))
    trusted = replace(CLAIM, state=CredentialState.TRUSTED)
    assert pool.credentials(signed, "jpeg", trust=pem) == trusted
    assert pool.credentials(signed, "jpeg") == CLAIM
    assert pool.credentials(namesake.sign(plain), "jpeg", trust=pem) == CLAIM
    short_lived = Signer.issued("Studio", authority, days=1 + 5 / 86400)
    once_trusted = short_lived.sign(plain)
    time.sleep(6)
    assert pool.credentials(once_trusted, "jpeg", trust=pem) == CLAIM
    assert trust_list.read(None) == ""
    for text in ("", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        (tmp_path / "list.pem").write_text(text)
        with pytest.raises(OptionError, match=r"list\.pem is no list of certificates"):
            trust_list.read(str(tmp_path / "list.pem"))
    with pytest.raises(OptionError, match="there is no trust list"):
        trust_list.read(str(tmp_path / "missing.pem"))


def test_what_was_changed_after_signing_is_invalid(
    authority: Signer, signer: Signer, plain: bytes, signed: bytes, pool: DecoderPool
) -> None:
    changed = [
        signed[:-100] + bytes([signed[-100] ^ 1]) + signed[-99:],  # the pixels
        signed.replace(b"Painter", b"Printer"),  # the claim
        signed.replace(b"trainedAlgorithmicMedia", b"trainedAlgorithmicMedic"),
        signed[: signed.rindex(b"\xff\xda")] + encode(scene(2), "JPEG").partition(b"\xff\xda")[2],  # moved
    ]
    for file in changed:
        told = pool.credentials(file, "jpeg", trust=authority.pem)
        assert told
        assert told.state is CredentialState.INVALID
    outer = pool.credentials(signer.sign(changed[0], parent=changed[0]), "jpeg")
    assert outer
    assert outer.state is not CredentialState.TRUSTED


def test_what_a_manifest_does_not_say_its_parent_does(
    signer: Signer, plain: bytes, signed: bytes, pool: DecoderPool
) -> None:
    edited = signer.sign(plain, generator="x" * 500 + "\n\u202e", source_type=None, parent=signed)
    told = pool.credentials(edited, "jpeg", thumbnail=True)
    assert told
    assert told.generator == "x" * credentials.MOST_TEXT
    assert told.digital_source_type == AI
    assert told.parent_thumbnail
    assert isinstance(pool.decode(told.parent_thumbnail, 64), Decoded)
    other = signer.sign(plain, source_type="https://example.org/painted")
    assert pool.credentials(other, "jpeg") == replace(
        CLAIM, digital_source_type="https://example.org/painted"
    )


def _read(file: bytes, tmp_path: Path, parent: bool = True) -> Picture:
    """Return a file as a corpus reads it, and require that its row does not depend on what it says."""
    (tmp_path / "upload").write_bytes(file)
    obj = storage.find(str(tmp_path / "upload"))
    picture, plain = (read_picture(obj, 64, DEFAULT_LIMITS, trust, look=parent) for trust in ("", None))
    assert isinstance(picture, Picture)
    assert isinstance(plain, Picture)
    assert np.array_equal(picture.decoded.pixels, plain.decoded.pixels)
    assert not plain.insets
    assert picture.credentials
    assert picture.credentials.parent_thumbnail is None
    return picture


def test_the_parent_of_a_manifest_is_decoded_beside_the_picture_also_of_a_forged_one(
    signer: Signer, plain: bytes, pool: DecoderPool, tmp_path: Path
) -> None:
    original = encode(scene(2), "JPEG")
    edited = signer.sign(plain, source_type=None, parent=original)
    forged = edited[:-100] + bytes([edited[-100] ^ 1]) + edited[-99:]
    expected = pool.decode(original, 64)
    assert isinstance(expected, Decoded)
    for file, state in ((edited, CredentialState.UNTRUSTED), (forged, CredentialState.INVALID)):
        picture = _read(file, tmp_path)
        assert picture.credentials == Credentials(state, "Painter 1.2")
        assert picture.insets and list(picture.insets) == ["parent"]
        parent = picture.insets["parent"].pixels
        assert np.abs(parent.astype(int) - expected.pixels).mean() < 5
    assert _read(edited, tmp_path, parent=False).insets is None
    assert not _read(signer.sign(plain), tmp_path).insets


@pytest.mark.parametrize(
    "thumbnail",
    [
        b"",
        b"no picture",
        encode(Image.new("1", (3000, 3000)), "PNG"),
        b"\xff\xd8" + bytes(MOST_THUMBNAIL),
        encode(scene(2), "JPEG")[:2000],
    ],
    ids=["empty", "text", "bomb", "large", "cut"],
)
def test_a_thumbnail_that_cannot_be_decoded_is_ignored(
    thumbnail: bytes, signer: Signer, plain: bytes, tmp_path: Path
) -> None:
    file = signer.sign(plain, source_type=None, parent=encode(scene(2), "JPEG"), thumbnail=thumbnail)
    picture = _read(file, tmp_path)
    assert not picture.insets
    assert picture.credentials == Credentials(CredentialState.UNTRUSTED, "Painter 1.2")


class _Counting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_POST = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Counting)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


FETCH = """
import sys
from contextlib import nullcontext
from pathlib import Path
from id2core.encoders import credentials
from id2core.encoders.decoder_process import no_new_files
data = Path(sys.argv[1]).read_bytes()
credentials._SETTINGS["verify"]["remote_manifest_fetch"] = True
credentials._SETTINGS["core"] = {}
assert credentials.load()
with {"no_new_files": no_new_files, "nullcontext": nullcontext}[sys.argv[2]]():
    credentials.read(data, "jpeg")
"""


def test_no_request_leaves(
    server: ThreadingHTTPServer, signer: Signer, plain: bytes, pool: DecoderPool, tmp_path: Path
) -> None:
    file = signer.sign(plain, remote=f"http://127.0.0.1:{server.server_port}/manifest.c2pa")
    asked: list[str] = server.asked  # type: ignore[attr-defined]
    remote = Credentials(CredentialState.REMOTE)
    assert credentials.may_have(file, "jpeg")
    assert pool.credentials(file, "jpeg") == remote
    assert credentials.read(file, "jpeg") == remote
    assert not asked
    # With the library's fetch on, a request arrives. The lock of the process stops it all the same.
    (tmp_path / "remote.jpg").write_bytes(file)
    for lock, expected in (("no_new_files", []), ("nullcontext", ["/manifest.c2pa"])):
        subprocess.run([sys.executable, "-c", FETCH, str(tmp_path / "remote.jpg"), lock], check=False)
        assert asked == expected


@given(data=st.data())
@settings(max_examples=60)
def test_a_changed_file_has_an_answer_and_no_intact_manifest_of_another_picture(
    data: st.DataObject, pool: DecoderPool
) -> None:
    whole, pixels = _small(pool)
    places = st.sets(st.integers(0, len(whole) - 1), min_size=1, max_size=8)
    file = bytearray(whole)
    for place in data.draw(places):
        file[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | st.integers(1, len(whole)))
    told = pool.credentials(bytes(file[:cut]), "jpeg")
    assert told
    if told.state is CredentialState.UNTRUSTED:
        decoded = pool.decode(bytes(file[:cut]), 64)
        assert isinstance(decoded, Decoded)
        assert np.array_equal(decoded.pixels, pixels)


@functools.cache
def _small(pool: DecoderPool) -> tuple[bytes, NDArray[np.uint8]]:
    """A signed picture and its pixels; no fixture, because hypothesis would print it."""
    file = Signer.issued("Studio", Signer.issued("Authority")).sign(encode(scene(1).resize((48, 48)), "JPEG"))
    decoded = pool.decode(file, 64)
    assert isinstance(decoded, Decoded)
    return file, decoded.pixels


@given(data=st.binary(max_size=200), kind=st.sampled_from(["jpeg", "png", "webp", "gif", "heif", "bmp"]))
def test_looking_for_a_manifest_takes_any_bytes(data: bytes, kind: str) -> None:
    assert credentials.may_have(data, kind) in (True, False)


def test_the_parent_that_a_manifest_shows_is_a_view(signer: Signer, signed: bytes, tmp_path: Path) -> None:
    edited = signer.sign(encode(collage(1, 2), "JPEG"), source_type=None, parent=signed)
    (tmp_path / "a.jpg").write_bytes(edited)
    [obj] = storage.list_objects(str(tmp_path))
    seen = pictures.read_picture(obj, 256, Limits(), "", look=True)
    assert isinstance(seen, Picture)
    assert seen.insets is not None and list(seen.insets) == ["half-1", "half-2", "parent"]
    parent, whole = seen.insets["parent"], images.decode(signed, 256)
    assert isinstance(whole, Decoded)
    assert parent.box == WHOLE and np.abs(parent.pixels.astype(int) - whole.pixels).mean() < 12
    unasked = pictures.read_picture(obj, 256, Limits(), None, look=True)
    assert isinstance(unasked, Picture)
    assert unasked.insets is not None and list(unasked.insets) == ["half-1", "half-2"]
    plain = pictures.read_picture(obj, 256, Limits(), "")
    assert isinstance(plain, Picture) and plain.insets is None


def test_a_manifest_over_its_budget_is_unreadable(signer: Signer) -> None:
    pool = DecoderPool(1)
    unreadable = Credentials(CredentialState.UNREADABLE)
    # 50 KB that the library writes as 11 MB of JSON.
    nested = functools.reduce(lambda inner, _: [inner], range(100), [0] * 50_000)
    file = signer.sign(encode(scene(1), "PNG"), "png", note=nested)
    try:
        assert pool.credentials(file, "png", Limits(max_memory=0)) == unreadable
        assert pool.credentials(file, "png", Limits(max_seconds=1e-3)) == unreadable
        assert isinstance(pool.decode(file, 64), Decoded)
        assert pool.credentials(file, "png") == CLAIM
    finally:
        pool.close()


def test_a_scan_tells_what_uploads_say_and_scores_them_alike(
    signer: Signer, authority: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_photos(tmp_path / "references", 4)
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    copy = encode(scene(2).resize((60, 45)), "JPEG")
    (uploads / "plain.jpg").write_bytes(copy)
    (uploads / "signed.jpg").write_bytes(signer.sign(copy, generator="<b>Painter"))
    (tmp_path / "list.pem").write_text(authority.pem)
    monkeypatch.setenv("ID2_C2PA_TRUST_LIST", str(tmp_path / "list.pem"))
    out = tmp_path / "out"
    id2.scan(reference=str(tmp_path / "references"), queries=str(uploads), out=str(out))
    names = [name for name, _ in schemas.CREDENTIALS]
    table = (
        Dataset.open(f"{out}/matches")
        .read(schemas.MATCHES)
        .sort_by([("query_uri", "ascending"), ("rank", "ascending")])
    )
    half = len(table) // 2
    without, said = table.slice(0, half), table.slice(half)
    assert set(zip(*(without[name].to_pylist() for name in names), strict=True)) == {("none", None, None)}
    claims = set(zip(*(said[name].to_pylist() for name in names), strict=True))
    assert claims == {("trusted", "<b>Painter 1.2", AI)}
    for column in ("reference_id", "score", "verdict"):
        assert without[column].to_pylist() == said[column].to_pylist()
    page = (out / "report.html").read_text()
    assert "trusted · &lt;b&gt;Painter 1.2 · trainedAlgorithmicMedia" in page


def test_no_manifest_is_read_where_credentials_are_off(signed: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "signed.jpg").write_bytes(signed)
    names = [name for name, _ in schemas.CREDENTIALS]
    states = {}
    for value in ("none", "auto"):
        out = str(tmp_path / value)
        id2.embed(images=str(tmp_path / "in"), out=out, credentials=value)
        [states[value]] = (
            Dataset.open(f"{out}/embeddings").read(schemas.embeddings_schema(1, 1), names).to_pylist()
        )
    assert states["none"] == dict.fromkeys(names)
    assert states["auto"]["c2pa_state"] == "untrusted"
