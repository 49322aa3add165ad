"""Files of strangers: what they cost, and that one of them never costs another its row."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin

from id2core.encoders import images, views
from id2core.encoders.budget import MIB, Limits
from id2core.encoders.decoder_pool import DecoderPool
from id2core.encoders.images import Decoded
from id2core.store.rejects import Reason, Reject
from tests.bombs import BOMBS, flat_webp, scans_jpeg
from tests.broken import broken_files, encode, good_files, picture
from tests.conftest import wait_until
from tests.drawing import collage, framed, scene
from tests.mutations import mutated

GOOD, BROKEN = good_files(), broken_files()
# What a bomb of at most 1 MB may end as, where it is not embedded.
REFUSALS = {Reason.OVER_BUDGET, Reason.TOO_MANY_PIXELS, Reason.CORRUPT}
MOST_MEMORY, MOST_SECONDS = 700 * MIB, 3.0


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2)
    yield pool
    pool.close()


def decoders(parent: int | None = None) -> list[psutil.Process]:
    """The decoder processes of a process, this one by default."""
    return [child for child in psutil.Process(parent).children(recursive=True) if is_decoder(child)]


def is_decoder(process: psutil.Process) -> bool:
    try:
        return "id2core.encoders.decoder_process" in process.cmdline()
    except psutil.Error:  # it has ended
        return False


def test_answers_are_those_of_the_plain_function(pool: DecoderPool) -> None:
    for data in (*GOOD.values(), *BROKEN.values(), b""):
        expected, answer = images.decode(data, 64), pool.decode(data, 64)
        if isinstance(expected, Decoded):
            assert isinstance(answer, Decoded)
            assert np.array_equal(answer.pixels, expected.pixels)
            assert (answer.width, answer.height, answer.format) == (
                expected.width,
                expected.height,
                expected.format,
            )
        else:
            assert answer == expected


def test_pictures_that_are_seen_inside_a_picture_come_back_with_their_places(pool: DecoderPool) -> None:
    frame = framed(scene(3, (400, 300)))
    inside = [collage(1, 2), frame, framed(frame, "black"), scene(4, (400, 300))]
    for shown, count in zip(inside, (2, 1, 1, 0), strict=True):
        data = encode(shown, "JPEG")
        expected, answer = images.decode(data, 96, look=views.insets), pool.decode(data, 96, look=True)
        assert isinstance(expected, Decoded) and isinstance(answer, Decoded)
        assert len(answer.insets) == count and np.array_equal(answer.pixels, expected.pixels)
        for one, other in zip(answer.insets, expected.insets, strict=True):
            assert one.box == other.box and np.array_equal(one.pixels, other.pixels)
        plain = pool.decode(data, 96)
        assert isinstance(plain, Decoded) and plain.insets == ()


class Cost:
    """The most that decoder processes of this process took at once, seen while a block runs."""

    def __init__(self) -> None:
        self._rest = {p.pid: (p.memory_info().rss, sum(p.cpu_times()[:2])) for p in decoders()}
        self.memory, self.seconds = 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Cost:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            together = 0
            for process in decoders():
                try:
                    memory, times = process.memory_info().rss, process.cpu_times()
                except psutil.Error:
                    continue
                rest, before = self._rest.get(process.pid, (0, 0.0))
                together += max(0, memory - rest)
                self.seconds = max(self.seconds, times.user + times.system - before)
            self.memory = max(self.memory, together)


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_costs_little_and_hurts_no_other_file(name: str) -> None:
    data = BOMBS[name]()
    assert len(data) <= MIB
    pool = DecoderPool(1)
    good = pool.decode(GOOD["jpeg_rgb.jpg"])
    with Cost() as cost:
        result = pool.decode(data)
    assert isinstance(result, Decoded) or result.reason in REFUSALS, result
    assert cost.memory < MOST_MEMORY
    assert cost.seconds < MOST_SECONDS
    after = pool.decode(GOOD["jpeg_rgb.jpg"])
    assert isinstance(good, Decoded)
    assert isinstance(after, Decoded)
    assert np.array_equal(after.pixels, good.pixels)
    pool.close()


def test_bombs_at_once_share_the_memory_of_the_pool() -> None:
    pool = DecoderPool(3)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(pool.decode, [GOOD["jpeg_rgb.jpg"]] * 12))
        before = len(decoders())
        with Cost() as cost:
            results = list(threads.map(pool.decode, [flat_webp(12_000, 3000 + i) for i in range(6)]))
    assert all(isinstance(r, Decoded) or r.reason is Reason.OVER_BUDGET for r in results), results
    assert len(decoders()) <= before
    assert cost.memory < 1500 * MIB
    pool.close()


def test_time_over_budget_is_told_as_such() -> None:
    pool = DecoderPool(1)
    result = pool.decode(scans_jpeg(6000, 90), limits=Limits(max_seconds=0.05))
    assert result == Reject(Reason.OVER_BUDGET, "more than 0.1 s of processor time")
    assert isinstance(pool.decode(GOOD["png_rgb.png"]), Decoded)
    pool.close()


def test_memory_over_budget_is_told_as_such(pool: DecoderPool) -> None:
    data = encode(Image.new("RGB", (7000, 7000)), "PNG", compress_level=1)
    result = pool.decode(data, limits=Limits(max_memory=160))
    assert isinstance(result, Reject)
    assert result.reason is Reason.OVER_BUDGET
    assert isinstance(pool.decode(data), Decoded)


def test_large_and_talkative_pictures_of_honest_people_decode(pool: DecoderPool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("description", "A page of text. " * 300)
    later = [Image.new("P", (64, 48), i) for i in range(200)]
    scene = picture(4000, 3000)
    files = {
        "long screenshot": encode(picture(1080, 20_000), "PNG", compress_level=1),
        "wide": encode(picture(16_383, 300), "WEBP", method=0),
        "phone, progressive": encode(scene, "JPEG", progressive=True),
        "phone": encode(scene, "PNG", compress_level=1),
        "see-through": encode(scene.convert("RGBA"), "PNG", compress_level=1),
        "scan of a page": encode(scene, "TIFF", compression="tiff_lzw"),
        "animation": encode(
            picture(64, 48).quantize(), "GIF", save_all=True, append_images=later, comment=b"by hand " * 5000
        ),
        "page of text": encode(picture(), "PNG", pnginfo=text),
    }
    for name, data in files.items():
        assert isinstance(pool.decode(data), Decoded), name


def test_a_file_larger_than_a_decoder_needs_at_rest_decodes(pool: DecoderPool) -> None:
    large = Image.new("RGB", (8000, 6000), "teal")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "makes the decoder hold a second file without it")
    for data in (encode(large, "BMP"), encode(large, "PNG", compress_level=0, pnginfo=text)):
        assert len(data) > 128 * MIB
        answer = pool.decode(data, 64)
        assert isinstance(answer, Decoded), answer


def test_a_decoder_that_is_killed_costs_no_row(pool: DecoderPool) -> None:
    pool.decode(GOOD["png_rgb.png"])
    for process in decoders():
        process.kill()
    assert isinstance(pool.decode(GOOD["png_rgb.png"]), Decoded)


def test_damaged_files_have_one_outcome_each(pool: DecoderPool) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda seed: pool.decode(mutated(seed)[1], 64), range(10_000, 10_300)))
    for result in results:
        if isinstance(result, Decoded):
            assert result.pixels.shape == (64, 64, 3)
        else:
            assert "crashed" not in result.detail
    assert len(results) == 300


class AtWork:
    """A decoder at work on a file that takes it about a second, and what comes of it."""

    def __init__(self, pool: DecoderPool) -> None:
        others = {process.pid for process in decoders()}
        pool.decode(GOOD["png_rgb.png"])
        (self.process,) = (process for process in decoders() if process.pid not in others)
        self._results: list[Decoded | Reject] = []
        self._thread = threading.Thread(target=self._decode, args=(pool,))
        before = self._seconds()
        self._thread.start()
        wait_until(lambda: self._seconds() > before, 60, "a decoder at work")

    def _decode(self, pool: DecoderPool) -> None:
        self._results.append(pool.decode(scans_jpeg(9000, 95), limits=Limits(max_seconds=600)))

    def _seconds(self) -> float:
        return sum(self.process.cpu_times()[:2])

    def result(self) -> Decoded | Reject:
        self._thread.join()
        return self._results[0]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_decoder_that_crashes_costs_its_file_one_reject(number: signal.Signals) -> None:
    pool = DecoderPool(1)
    work = AtWork(pool)
    work.process.send_signal(number)
    assert work.result() == Reject(Reason.CORRUPT, f"its decoder crashed: {number.name}")
    assert isinstance(pool.decode(GOOD["png_rgb.png"]), Decoded)
    pool.close()


def test_a_decoder_that_is_killed_at_work_costs_no_row() -> None:
    pool = DecoderPool(1)
    work = AtWork(pool)
    work.process.kill()
    assert isinstance(work.result(), Decoded)
    pool.close()


def test_a_decoder_that_stops_is_ended() -> None:
    pool = DecoderPool(1, stall_seconds=1)
    work = AtWork(pool)
    work.process.suspend()
    assert work.result() == Reject(Reason.OVER_BUDGET, "its decoder stopped")
    assert isinstance(pool.decode(GOOD["png_rgb.png"]), Decoded)
    pool.close()


PARENT = """
import sys, time
from id2core.encoders.decoder_pool import decode
print(decode(sys.stdin.buffer.read()), flush=True)
time.sleep(600)
"""


def test_no_decoder_outlives_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin
    assert parent.stdout
    parent.stdin.write(GOOD["png_rgb.png"])
    parent.stdin.close()
    assert parent.stdout.readline().startswith(b"Decoded")
    children = decoders(parent.pid)
    assert len(children) == 1
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(alive(child) for child in children), 60, "the end of the decoders")


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_decoder_takes_no_modules_and_no_secrets_of_its_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('an upload was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ID2_PROMPT_API_KEY", "secret")
    pool = DecoderPool(1)
    assert isinstance(pool.decode(GOOD["png_rgb.png"]), Decoded)
    assert all("ID2_PROMPT_API_KEY" not in process.environ() for process in decoders())
    pool.close()


def test_a_forked_process_has_decoders_of_its_own() -> None:
    code = """
import os, sys
from id2core.encoders import decoder_pool
data = sys.stdin.buffer.read()
first = decoder_pool.decode(data)
child = os.fork()
if not child:
    os._exit(0 if (decoder_pool.decode(data).pixels == first.pixels).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], input=GOOD["png_rgb.png"], check=True, timeout=300)


def test_a_decoder_imports_neither_torch_nor_arrow() -> None:
    code = "import sys, id2core.encoders.decoder_process as d; print(*{m.split('.')[0] for m in sys.modules})"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "pyarrow", "apache_beam", "pydantic", "prefect"} & set(names.split())
