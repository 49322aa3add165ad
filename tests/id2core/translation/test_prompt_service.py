"""Prompts from an endpoint: a real HTTP server that speaks the protocol."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import socket
import traceback
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from id2core.errors import PromptError
from id2core.store.rejects import Reason, Reject
from id2core.translation import prompts
from id2core.translation.prompts import PromptSource
from tests.bombs import deflated_zeros
from tests.drawing import scene
from tests.vision_server import (
    CLOSED,
    DRIPPING,
    GARBAGE,
    KEY,
    MODEL,
    PAPER,
    SILENT,
    Server,
    error,
    numbered,
    picture_of,
    text_of,
)


@pytest.fixture
def source(vision_server: Server, tmp_path: Path) -> PromptSource:
    return prompts.load("endpoint", "/images", str(tmp_path / "out"))


def ask_all(source: PromptSource, pictures: list[tuple[str, str, bytes]], count: int) -> list[Any]:
    """As a run does: several threads at a time, and an error stops what has not begun."""
    with ThreadPoolExecutor(source.concurrency) as pool:
        asked = [pool.submit(source.prompts_for, *picture, count) for picture in pictures]
        wait(asked, return_when=FIRST_EXCEPTION)
        for future in asked:
            future.cancel()
        return [future.result() for future in asked]


def jpeg(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    scene(seed, size).save(file, "JPEG")
    return file.getvalue()


def batch(count: int) -> list[tuple[str, str, bytes]]:
    return [(f"image{i}", f"/images/{i}.jpg", jpeg(i)) for i in range(count)]


def one(source: PromptSource, count: int = 20) -> list[str] | Reject:
    return source.prompts_for("image", "/images/x.jpg", jpeg(1), count)


@pytest.mark.parametrize("kind", ["file", "loaded"])
def test_the_request_is_the_papers_with_the_picture(
    kind: str, vision_server: Server, source: PromptSource
) -> None:
    picture = jpeg(1, (1200, 300)) if kind == "file" else scene(1, (1200, 300)).convert("RGBA")
    prompts = source.prompts_for("image", "/images/x.jpg", picture, 20)
    assert isinstance(prompts, list) and len(prompts) == 20 and prompts[0].startswith("Translation 1 of")
    [body], [headers] = vision_server.requests, vision_server.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert set(body) == {"model", "messages"} and body["model"] == MODEL
    assert [m["role"] for m in body["messages"]] == ["user"] and text_of(body) == PAPER
    sent = picture_of(body)
    assert sent.size == (512, 128) and sent.mode == "RGB"
    wanted = scene(1, (1200, 300)).resize((8, 2))
    assert all(abs(a - b) < 12 for a, b in zip(sent.resize((8, 2)).tobytes(), wanted.tobytes(), strict=True))


def test_a_small_count_is_the_beginning_of_a_large_one(vision_server: Server, source: PromptSource) -> None:
    first = one(source, 1)
    assert one(source, 5)[:1] == first and one(source, 20)[:1] == first
    assert len(vision_server.requests) == 1
    assert vision_server.reply(vision_server.requests[0]).count("\n") == 19
    assert isinstance(one(source, 25), list)
    assert "only return 25 different" in text_of(vision_server.requests[1])


def test_nothing_is_lost_when_a_fifth_fails_and_nothing_is_asked_twice(
    vision_server: Server, source: PromptSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: Counter[str] = Counter()
    failed = []

    def flaky(body: dict[str, Any]) -> Any:
        text = numbered(body)
        tries[text] += 1
        draw = random.Random(f"{text}/{tries[text]}")
        if draw.random() < 0.2:
            failed.append(1)
            return draw.choice([error(500), error(429, **{"Retry-After": "0"}), CLOSED, GARBAGE])
        return text

    vision_server.reply = flaky
    replies = ask_all(source, batch(60), 20)
    assert all(isinstance(f, list) and len(f) == 20 for f in replies)
    assert len({f[0] for f in replies}) == 60 and vision_server.answered == 60
    assert 5 < len(failed) < 30 and len(vision_server.requests) == 60 + len(failed)

    other = Server()
    monkeypatch.setenv("ID2_PROMPT_BASE_URL", other.url)
    again = prompts.load("endpoint", "/images", str(tmp_path / "out"))
    assert again.identity == source.identity
    assert ask_all(again, batch(60), 20) == replies
    assert other.requests == [] and len(vision_server.requests) == 60 + len(failed)
    monkeypatch.setenv("ID2_PROMPT_MODEL", "another")
    assert prompts.load("endpoint", "/images", str(tmp_path / "out")).identity != source.identity
    other.http.shutdown()


def test_a_run_that_is_stopped_has_paid_for_nothing_in_vain(
    vision_server: Server, source: PromptSource
) -> None:
    vision_server.reply = lambda body: numbered(body) if vision_server.answered < 10 else error(401)
    with pytest.raises(PromptError):
        ask_all(source, batch(60), 20)
    # Some more may have been under way when the first was refused, but not the rest of the batch.
    assert len(vision_server.requests) < 60
    paid, vision_server.reply = vision_server.answered, numbered
    assert paid >= 10
    replies = ask_all(source, batch(60), 20)
    assert all(isinstance(f, list) for f in replies) and vision_server.answered == 60


def test_answers_are_stored_in_a_bucket_too(vision_server: Server, gcs: str, tmp_path: Path) -> None:
    out = f"gs://{gcs}/{tmp_path.name}"
    first = one(prompts.load("endpoint", "/images", out))
    assert first == one(prompts.load("endpoint", "/images", out))
    assert isinstance(first, list) and len(vision_server.requests) == 1


def test_the_same_picture_twice_at_a_time_is_asked_about_once(
    vision_server: Server, source: PromptSource
) -> None:
    replies = ask_all(source, batch(1) * 16, 20)
    assert len(vision_server.requests) == 1 and len({tuple(f) for f in replies}) == 1


@pytest.mark.parametrize(
    "failure",
    [
        *(error(status) for status in (408, 409, 429, 500, 502, 503, 529)),
        *(CLOSED, GARBAGE, SILENT, "", {"choices": []}, {"error": {"message": "overloaded"}}),
    ],
)
def test_what_may_pass_is_tried_again(
    failure: Any, vision_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ID2_PROMPT_TIMEOUT_SECONDS", "0.5" if failure == SILENT else "60")
    vision_server.script = [failure]
    assert isinstance(one(prompts.load("endpoint", "/images", str(tmp_path))), list)
    assert len(vision_server.requests) == 2


def test_the_server_says_how_long_to_wait(vision_server: Server, source: PromptSource) -> None:
    vision_server.script = [error(429, **{"Retry-After": "1"})]
    assert isinstance(one(source), list)
    assert vision_server.times[1] - vision_server.times[0] >= 1


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (400, "", "ID2_PROMPT_MODEL takes pictures"),
        (401, "invalid_api_key", "ID2_PROMPT_API_KEY"),
        (403, "", "what the key"),
        (404, "model_not_found", "ID2_PROMPT_BASE_URL"),
        (422, "", "ID2_PROMPT_MODEL"),
        (429, "insufficient_quota", "credit"),
    ],
)
def test_what_will_not_pass_stops_at_once_and_keeps_the_key_secret(
    status: int, code: str, hint: str, vision_server: Server, source: PromptSource, tmp_path: Path
) -> None:
    vision_server.reply = lambda body: error(status, f"You sent {KEY}\n to me", code)
    with pytest.raises(PromptError, match=hint) as caught:
        one(source)
    assert len(vision_server.requests) == 1
    assert "You sent [key] to me" in str(caught.value) and MODEL in str(caught.value)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert KEY not in shown and KEY not in repr(source)
    assert KEY.encode() not in pickle.dumps(source)
    assert not list(tmp_path.rglob("*.json"))


def test_workers_take_the_key_from_their_own_environment(vision_server: Server, source: PromptSource) -> None:
    assert isinstance(one(pickle.loads(pickle.dumps(source))), list)
    assert vision_server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_refused_picture_is_a_reject_and_others_go_on(vision_server: Server, source: PromptSource) -> None:
    refusals = [
        "I'm sorry, I can't help with that.",
        {"choices": [{"message": {"content": None, "refusal": "Not this one."}}]},
        error(400, "filtered by policy", "content_filter"),
    ]
    asked: Counter[str] = Counter()

    def reply_to(body: dict[str, Any]) -> Any:
        text = numbered(body)
        asked[text] += 1
        return refusals[list(asked).index(text)] if list(asked).index(text) < len(refusals) else text

    vision_server.reply = reply_to
    pictures = batch(5)
    replies = [source.prompts_for(*picture, 20) for picture in pictures]
    assert [isinstance(f, Reject) for f in replies] == [True, True, True, False, False]
    assert all(f.reason == Reason.NO_PROMPT for f in replies[:3])
    assert [
        "help with that" in replies[0].detail,
        "Not this" in replies[1].detail,
        "policy" in replies[2].detail,
    ]
    assert list(asked.values()) == [6, 6, 6, 1, 1]
    assert [source.prompts_for(*picture, 20) for picture in pictures] == replies
    assert sum(asked.values()) == 20


def test_the_rest_of_too_few_is_asked_for_once(vision_server: Server, source: PromptSource) -> None:
    few = "1. Red sky\n2. Blue sea\n3. Green hill"
    vision_server.script = [few, "1. blue sea\n2. White wall"]
    assert one(source) == ["Red sky", "Blue sea", "Green hill", "White wall"]
    assert one(source) == ["Red sky", "Blue sea", "Green hill", "White wall"]
    assert len(vision_server.requests) == 2
    _, answer, question = vision_server.requests[1]["messages"]
    assert vision_server.requests[1]["messages"][:1] == vision_server.requests[0]["messages"]
    assert answer == {"role": "assistant", "content": few}
    assert question["role"] == "user" and "only return 17 more" in question["content"].lower()


@pytest.mark.parametrize(("then", "requests"), [("I'm sorry, that is all I have.", 2), (error(500), 7)])
def test_too_few_prompts_are_better_than_none(
    then: Any, requests: int, vision_server: Server, source: PromptSource
) -> None:
    vision_server.script = ["1. Red sky"]
    vision_server.reply = lambda body: then
    assert one(source) == ["Red sky"]
    assert len(vision_server.requests) == requests


def test_too_few_prompts_are_stored_before_the_rest_is_asked_for(
    vision_server: Server, source: PromptSource
) -> None:
    vision_server.script = ["1. Red sky", error(401)]
    with pytest.raises(PromptError):
        one(source)
    vision_server.script = ["1. Blue sea"]
    assert one(source) == ["Red sky", "Blue sea"]
    assert len(vision_server.requests) == 3 and len(vision_server.requests[2]["messages"]) == 3


def test_an_answer_that_ran_out_of_tokens_loses_its_last_prompt(
    vision_server: Server, source: PromptSource
) -> None:
    cut = {"message": {"content": "1. Red sky\n2. Blue se"}, "finish_reason": "length"}
    vision_server.script = [{"choices": [cut]}, "none"]
    assert one(source)[:2] == ["Red sky", "none"]


def test_what_is_no_picture_is_not_sent(vision_server: Server, source: PromptSource) -> None:
    reject = source.prompts_for("image", "/images/x.txt", b"just text", 20)
    assert isinstance(reject, Reject) and reject.reason == Reason.NOT_AN_IMAGE
    assert vision_server.requests == []


def test_an_endpoint_that_goes_away_rejects_and_one_that_never_was_stops(
    vision_server: Server, source: PromptSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(one(source), list)
    vision_server.reply = lambda body: CLOSED
    reject = source.prompts_for("other", "/images/y.jpg", jpeg(2), 20)
    assert isinstance(reject, Reject) and "no answer in 6 attempts" in reject.detail
    assert len(list(tmp_path.rglob("*.json"))) == 1
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ID2_PROMPT_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        with pytest.raises(PromptError, match=r"cannot be reached.*check ID2_PROMPT_BASE_URL"):
            one(prompts.load("endpoint", "/images", str(tmp_path / "new")))


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("BASE_URL", "", "set ID2_PROMPT_BASE_URL"),
        ("MODEL", "", "set ID2_PROMPT_MODEL"),
        ("BASE_URL", "api.example.com/v1", "http"),
        ("BASE_URL", "https://me:sk-very@h/v1", "without user"),
        ("API_KEY", "sk-very\nsk-very", "copied whole"),
        ("COUNT", "0", "count"),
    ],
)
def test_senseless_settings_are_refused(
    name: str, value: str, hint: str, vision_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ID2_PROMPT_{name}", value)
    with pytest.raises(PromptError, match=hint) as caught:
        prompts.load("endpoint", "/images", "/out")
    assert "sk-very" not in "".join(traceback.format_exception(caught.value))


def test_a_pasted_address_and_a_key_with_a_line_end_are_understood(
    vision_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ID2_PROMPT_BASE_URL", f" {vision_server.url}/chat/completions ")
    monkeypatch.setenv("ID2_PROMPT_API_KEY", f"{KEY}\n")
    assert isinstance(one(prompts.load("endpoint", "/images", str(tmp_path))), list)
    assert vision_server.headers[0]["Authorization"] == f"Bearer {KEY}"


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def gzip_bomb() -> bytes:
    return deflated_zeros(1 << 28, zlib.MAX_WBITS | 16)


HOSTILE: dict[str, Callable[[], Any]] = {
    "600_million_bytes": lambda: (200, {}, b" " * (8 << 20)),
    "gzip_bomb": lambda: (200, {"Content-Encoding": "gzip"}, gzip_bomb()),
    "gzip_of_nothing": lambda: (200, {"Content-Encoding": "gzip"}, b"no gzip"),
    "unknown_packing": lambda: (200, {"Content-Encoding": "br"}, b"x"),
    "a_book": lambda: (200, {}, completion("1. word " * 100_000)),
    "deep": lambda: (200, {}, b"[" * 1_000_000),
    "error_bomb": lambda: (500, {"Content-Encoding": "gzip"}, gzip_bomb()),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_answer_beyond_the_limits_is_dropped_and_asked_for_again(
    kind: str, source: PromptSource, vision_server: Server
) -> None:
    vision_server.script = [HOSTILE[kind]()]
    tracemalloc.start()
    assert len(source.prompts_for("image", "/images/x.jpg", jpeg(0), 3)) == 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(vision_server.requests) == 2 and peak < 64 << 20


def test_an_answer_may_be_packed_within_the_limits(source: PromptSource, vision_server: Server) -> None:
    vision_server.script = [(200, {"Content-Encoding": "gzip"}, gzip.compress(completion(numbered_words())))]
    assert source.prompts_for("image", "/images/x.jpg", jpeg(0), 2) == ["Word 1", "Word 2"]
    assert len(vision_server.requests) == 1


def numbered_words() -> str:
    return "\n".join(f"{i}. Word {i}" for i in range(1, 21))


def test_a_server_that_drips_costs_a_deadline_and_one_picture(
    vision_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ID2_PROMPT_TIMEOUT_SECONDS", "0.2")
    monkeypatch.setenv("ID2_PROMPT_ATTEMPTS", "1")
    vision_server.script = [DRIPPING]
    asked = prompts.load("endpoint", "/images", str(tmp_path / "out"))
    reject = asked.prompts_for("image", "/images/x.jpg", jpeg(0), 3)
    assert isinstance(reject, Reject) and "no whole answer in 1 s" in reject.detail
