"""Prompts from files, captions and an endpoint: a real HTTP server that speaks the protocol."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from id2core.oripid import prompts
from id2core.oripid.prompt_dialogue import parse
from id2core.oripid.prompts import PromptError, PromptSource
from id2core.rejects import Reason, Reject
from tests.drawing import scene

KEY = "sk-very-secret-0123456789"
MODEL = "a-vision-model"
# Figure 11 of the paper, word for word.
PAPER = (
    "I am doing image-to-image translation. Could you think of creative prompts to translate this image to "
    "different ones? Keep them creative, and only return 20 different prompts."
)
GARBAGE, CLOSED, SILENT = "garbage", "closed", "silent"

# --- files -----------------------------------------------------------------------------------------------

ROWS = {
    "uri": ["a.jpg", "photos/b.jpg", "gs://x/c.jpg", "/d/photos/a.jpg", "/d/photos/e.jpg"],
    "prompt": ['Snow,  "deep"', "a city\nby night", "gold", "sand", ""],
}
BY_URI = {
    "/d/photos/a.jpg": ['Snow, "deep"', "sand"],
    "/d/photos/b.jpg": ["a city by night"],
    "gs://x/c.jpg": ["gold"],
}


def write_table(path: Path, rows: dict[str, list[Any]]) -> str:
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


def ask(source: PromptSource, uri: str = "", count: int = 20, image_id: str = "id") -> list[str] | Reject:
    return source.prompts_for(image_id, uri, b"", count)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_table_gives_each_image_its_own_prompts(kind: str, tmp_path: Path) -> None:
    source = prompts.load(write_table(tmp_path / f"p.{kind}", ROWS), "/d/photos", "/out")
    source = pickle.loads(pickle.dumps(source))
    assert {uri: ask(source, uri) for uri in BY_URI} == BY_URI
    assert ask(source, "/d/photos/a.jpg", count=1) == ['Snow, "deep"']
    for uri in ("/d/photos/e.jpg", "/d/photos/unknown.jpg"):
        reject = ask(source, uri)
        assert isinstance(reject, Reject) and reject.reason == Reason.NO_PROMPT


def test_lines_are_drawn_by_image_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt {i % 30}\n\n" for i in range(60)))
    source = prompts.load(str(path), "/d", "/out")
    drawn = {i: ask(source, count=5, image_id=f"image {i}") for i in range(200)}
    assert all(len(set(d)) == 5 for d in drawn.values())
    assert {p for d in drawn.values() for p in d} == {f"prompt {i}" for i in range(30)}
    assert max(Counter(d[0] for d in drawn.values()).values()) < 30
    assert ask(source, count=5, image_id="image 7") == drawn[7]
    assert ask(source, count=2, image_id="image 7") == drawn[7][:2]
    assert sorted(ask(source, count=99)) == sorted(f"prompt {i}" for i in range(30))


@pytest.mark.parametrize("place", ["photos/captions.csv", "captions.csv", "captions.parquet"])
@pytest.mark.parametrize("spec", [None, "captions"])
def test_captions_are_found_in_or_beside_the_images(spec: str | None, place: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rows = {"file": ["a.jpg", "b.jpg"], "source": [1, 2], "caption": ["a shirt", None]}
    write_table(tmp_path / place, rows)
    source = prompts.load(spec, f"{tmp_path}/photos/", "/out")
    assert ask(source, f"{tmp_path}/photos/a.jpg") == ["a shirt"]
    assert isinstance(ask(source, f"{tmp_path}/photos/b.jpg"), Reject)


def test_without_captions_the_options_are_named(tmp_path: Path) -> None:
    for spec in (None, "captions", "nothing.csv"):
        with pytest.raises(PromptError) as error:
            prompts.load(spec, str(tmp_path), "/out")
        assert all(
            word in str(error.value) for word in ("`captions`", "`endpoint`", "`empty`", "CSV", ".txt")
        )
    assert ask(prompts.load("empty", str(tmp_path), "/out")) == [""]


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("p.csv", "image,text\na,b\n", "expected uri and prompt"),
        ("p.csv", "uri,prompt\na,b,c\n", "cannot be read"),
        ("p.csv", "uri,prompt\na,\n", "holds no prompt"),
        ("p.csv", "uri,prompt\n,b\n", "names no image"),
        ("p.jsonl", '{"uri": "a", "prompt": ["b"]}\n', "cannot be read"),
        ("p.jsonl", "", "cannot be read"),
        ("p.parquet", "PAR1", "cannot be read"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.xlsx", "", "must end in"),
    ],
)
def test_a_file_that_cannot_be_understood_says_so(name: str, text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=hint):
        prompts.load(str(tmp_path / name), "/d", "/out")


def test_a_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n")
    first = prompts.load(str(path), "/d", "/out")
    path.write_text("two\n")
    second = prompts.load(str(path), "/d", "/out")
    assert first.identity != second.identity
    path.write_text("three\n")
    third = prompts.load(str(path), "/d", "/out")
    path.write_text("four\n")
    prompts._lines.cache_clear()  # what another process has not read yet
    with pytest.raises(PromptError, match="start the run again"):
        ask(third)


# --- answers ---------------------------------------------------------------------------------------------

LONG = "A knight in fog: oil on canvas, 3.5 m wide"
SHORT = "Don't look, 12 cats!"


@pytest.mark.parametrize(
    "answer",
    [
        f"1. {LONG}\n2. {SHORT}",
        f"1) {LONG}\n\n2) {SHORT}\n\nLet me know if you want more!",
        f"Sure! Here are 2 prompts:\n\n1. **A knight in fog**: oil on canvas, 3.5 m wide\n2. {SHORT}\nEnjoy!",
        f"  9. {LONG}\n 10. {SHORT}",
        f"1.{LONG}\n2.{SHORT}",
        f"**Prompt 1:** {LONG}\n**Prompt 2:** {SHORT}",
        f"### 1. A knight in fog:\n   oil on canvas,\n   3.5 m wide\n\n## More\n### 2. {SHORT}",
        f"1. A knight in fog:\n   - oil on canvas, 3.5 m wide\n2. {SHORT}",
        f"- {LONG}\n- {SHORT}",
        f"- A knight in fog:\n    - oil on canvas, 3.5 m wide\n- {SHORT}",
        f"Of course.\n* {LONG}\n* {SHORT}\n* {SHORT.upper()}",
        f"• {LONG}\n\n• {SHORT}",
        f'1. "{LONG}"\n2. “{SHORT}”',
        f'"{LONG}",\n"{SHORT}"',
        f"{LONG}\n\n{SHORT}\n",
        f"Here are two creative prompts.\n{LONG}\n{SHORT}\nI hope these help!",
        f"Sure!\nBelow are your prompts:\n{LONG}\n{SHORT}",
        json.dumps([LONG, SHORT]),
        f"Here you go:\n```json\n{json.dumps([LONG, SHORT], indent=2)}\n```\nEnjoy!",
        json.dumps({"prompts": [{"id": 1, "prompt": LONG}, {"id": 2, "prompt": SHORT}]}),
        json.dumps({"1": LONG, "2": SHORT}),
        json.dumps([f"1. {LONG}", f"2. {SHORT}"]),
        f"```\n1. {LONG}\n2. {SHORT}\n```",
        f"<think>\n1. think\n</think>\n1. {LONG}\n2. {SHORT}",
        f"I'm sorry, I can't name the person, but here are 2 prompts:\n1. {LONG}\n2. {SHORT}",
    ],
)
def test_prompts_are_found_in_every_usual_form(answer: str) -> None:
    assert parse(answer) == [LONG, SHORT]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, I can't help with that.",
        "I’m sorry, but I can’t assist with this image.",
        "I cannot create prompts for this image. What I can do:\n- describe it\n- count its colours",
        "Sorry, no.\n\nPlease try another picture.",
        "- I'm sorry, I can't do that.",
        '["I\'m unable to help."]',
        "Here are 20 creative prompts:",
        "1.\n2.\n---\n",
        "",
    ],
)
def test_a_refusal_is_no_prompt(answer: str) -> None:
    assert parse(answer) == []


def test_a_single_prompt_may_stand_behind_its_preface() -> None:
    assert parse(f"Here is a creative prompt: {LONG}\n\nLet me know!") == [LONG]
    assert parse("Great wall\nBelow zero") == ["Great wall", "Below zero"]


WORD = st.text(st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=8)
# "A painting of" keeps drawn words from being a refusal or a preface.
PROMPT = st.lists(WORD, min_size=1, max_size=6).map(lambda words: f"A painting of {' '.join(words)}")
FORMS: list[Callable[[int, str], str]] = [
    lambda i, p: f"{i}. {p}",
    lambda i, p: f"{i}) **{p}**",
    lambda i, p: f"- {p}",
    lambda i, p: f'* "{p}"',
    lambda i, p: p,
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PROMPT, min_size=1, max_size=25, unique_by=str.casefold),
    st.sampled_from(FORMS),
    st.sampled_from(["\n", "\n\n", "\r\n"]),
    st.sampled_from(["", "Sure! Here are your prompts:\n\n"]),
    st.sampled_from(["", "\n\nLet me know which you like."]),
)
def test_what_a_list_says_is_what_is_read(
    wanted: list[str], form: Callable[[int, str], str], gap: str, preface: str, farewell: str
) -> None:
    answer = preface + gap.join(form(i, p) for i, p in enumerate(wanted, 1)) + farewell
    assert parse(answer) == wanted
    assert parse(json.dumps(wanted)) == wanted


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="1.)-*\n \t#[]{}\":,'`ab“")))
def test_no_answer_breaks_the_reader(answer: str) -> None:
    found = parse(answer)
    assert len({p.casefold() for p in found}) == len(found)
    assert all(p and p == " ".join(p.split()) for p in found)


# --- an endpoint -----------------------------------------------------------------------------------------


class Server:
    """Counts what it is asked. `script`: replies for the next requests; then `reply` decides.

    A reply is the text of an answer, a whole JSON body, (status, headers, body), or a way to fail.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.times: list[float] = []
        self.answered = 0
        self.script: list[Any] = []
        self.reply: Callable[[dict[str, Any]], Any] = numbered
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer._serve(self, body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(body)
            self.headers.append(handler.headers)
            self.times.append(time.monotonic())
            reply = self.script.pop(0) if self.script else self.reply(body)
        if reply == CLOSED:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply == SILENT:
            time.sleep(1)
        status, headers, data = self._response(handler.path, reply)
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def _response(self, path: str, reply: Any) -> tuple[int, dict[str, str], bytes]:
        if not path.endswith("/v1/chat/completions"):
            return 404, {}, b"no such page"
        if isinstance(reply, tuple):
            status, headers, body = reply
            return status, headers, json.dumps(body).encode()
        if isinstance(reply, str) and reply in (GARBAGE, SILENT):
            return 200, {}, b'{"choices": [{"mess'
        with self._lock:
            self.answered += 1
        if isinstance(reply, dict):
            return 200, {}, json.dumps(reply).encode()
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"choices": [choice]}).encode()


def error(status: int, message: str = "", code: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
    return status, headers, {"error": {"message": message, "code": code, "type": "x"}}


def picture_of(body: dict[str, Any]) -> Image.Image:
    head, data = body["messages"][0]["content"][1]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][0]["text"]


def numbered(body: dict[str, Any]) -> str:
    """Twenty prompts that name the picture's colour."""
    colour = picture_of(body).resize((1, 1)).getpixel((0, 0))
    return "\n".join(f"{i}. Translation {i} of {colour}" for i in range(1, 21))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {
        "BASE_URL": server.url,
        "API_KEY": KEY,
        "MODEL": MODEL,
        "RETRY_SECONDS": "0.001",
        "ATTEMPTS": "6",
    }.items():
        monkeypatch.setenv(f"ID2_PROMPT_{name}", value)
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def source(server: Server, tmp_path: Path) -> PromptSource:
    return prompts.load("endpoint", "/images", str(tmp_path / "out"))


def jpeg(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    scene(seed, size).save(file, "JPEG")
    return file.getvalue()


def batch(count: int) -> list[tuple[str, str, bytes]]:
    return [(f"image{i}", f"/images/{i}.jpg", jpeg(i)) for i in range(count)]


def one(source: PromptSource, count: int = 20) -> list[str] | Reject:
    return source.prompts_for("image", "/images/x.jpg", jpeg(1), count)


@pytest.mark.parametrize("kind", ["file", "loaded"])
def test_the_request_is_the_papers_with_the_picture(kind: str, server: Server, source: PromptSource) -> None:
    picture = jpeg(1, (1200, 300)) if kind == "file" else scene(1, (1200, 300)).convert("RGBA")
    found = source.prompts_for("image", "/images/x.jpg", picture, 20)
    assert isinstance(found, list) and len(found) == 20 and found[0].startswith("Translation 1 of")
    [body], [headers] = server.requests, server.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert set(body) == {"model", "messages"} and body["model"] == MODEL
    assert [m["role"] for m in body["messages"]] == ["user"] and text_of(body) == PAPER
    sent = picture_of(body)
    assert sent.size == (512, 128) and sent.mode == "RGB"
    wanted = scene(1, (1200, 300)).resize((8, 2))
    assert all(abs(a - b) < 12 for a, b in zip(sent.resize((8, 2)).tobytes(), wanted.tobytes(), strict=True))


def test_a_small_count_is_the_beginning_of_a_large_one(server: Server, source: PromptSource) -> None:
    first = one(source, 1)
    assert one(source, 5)[:1] == first and one(source, 20)[:1] == first
    assert len(server.requests) == 1
    assert server.reply(server.requests[0]).count("\n") == 19
    assert isinstance(one(source, 25), list)
    assert "only return 25 different" in text_of(server.requests[1])


def test_nothing_is_lost_when_a_fifth_fails_and_nothing_is_asked_twice(
    server: Server, source: PromptSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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

    server.reply = flaky
    found = prompts.ask_all(source, batch(60), 20)
    assert all(isinstance(f, list) and len(f) == 20 for f in found)
    assert len({f[0] for f in found}) == 60 and server.answered == 60
    assert 5 < len(failed) < 30 and len(server.requests) == 60 + len(failed)

    other = Server()
    monkeypatch.setenv("ID2_PROMPT_BASE_URL", other.url)
    again = prompts.load("endpoint", "/images", str(tmp_path / "out"))
    assert again.identity == source.identity
    assert prompts.ask_all(again, batch(60), 20) == found
    assert other.requests == [] and len(server.requests) == 60 + len(failed)
    monkeypatch.setenv("ID2_PROMPT_MODEL", "another")
    assert prompts.load("endpoint", "/images", str(tmp_path / "out")).identity != source.identity
    other.http.shutdown()


def test_a_run_that_is_stopped_has_paid_for_nothing_in_vain(server: Server, source: PromptSource) -> None:
    server.reply = lambda body: numbered(body) if server.answered < 10 else error(401)
    with pytest.raises(PromptError):
        prompts.ask_all(source, batch(60), 20)
    # Some more may have been under way when the first was refused, but not the rest of the batch.
    assert len(server.requests) < 60
    paid, server.reply = server.answered, numbered
    assert paid >= 10
    found = prompts.ask_all(source, batch(60), 20)
    assert all(isinstance(f, list) for f in found) and server.answered == 60


def test_answers_are_stored_in_a_bucket_too(server: Server, gcs: str, tmp_path: Path) -> None:
    out = f"gs://{gcs}/{tmp_path.name}"
    first = one(prompts.load("endpoint", "/images", out))
    assert first == one(prompts.load("endpoint", "/images", out))
    assert isinstance(first, list) and len(server.requests) == 1


def test_the_same_picture_twice_at_a_time_is_asked_about_once(server: Server, source: PromptSource) -> None:
    found = prompts.ask_all(source, batch(1) * 16, 20)
    assert len(server.requests) == 1 and len({tuple(f) for f in found}) == 1


@pytest.mark.parametrize(
    "failure",
    [
        *(error(status) for status in (408, 409, 429, 500, 502, 503, 529)),
        *(CLOSED, GARBAGE, SILENT, "", {"choices": []}, {"error": {"message": "overloaded"}}),
    ],
)
def test_what_may_pass_is_tried_again(
    failure: Any, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ID2_PROMPT_TIMEOUT_SECONDS", "0.5" if failure == SILENT else "60")
    server.script = [failure]
    assert isinstance(one(prompts.load("endpoint", "/images", str(tmp_path))), list)
    assert len(server.requests) == 2


def test_the_server_says_how_long_to_wait(server: Server, source: PromptSource) -> None:
    server.script = [error(429, **{"Retry-After": "1"})]
    assert isinstance(one(source), list)
    assert server.times[1] - server.times[0] >= 1


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
    status: int, code: str, hint: str, server: Server, source: PromptSource, tmp_path: Path
) -> None:
    server.reply = lambda body: error(status, f"You sent {KEY}\n to me", code)
    with pytest.raises(PromptError, match=hint) as caught:
        one(source)
    assert len(server.requests) == 1
    assert "You sent [key] to me" in str(caught.value) and MODEL in str(caught.value)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert KEY not in shown and KEY not in repr(source)
    assert KEY.encode() not in pickle.dumps(source)
    assert not list(tmp_path.rglob("*.json"))


def test_workers_take_the_key_from_their_own_environment(server: Server, source: PromptSource) -> None:
    assert isinstance(one(pickle.loads(pickle.dumps(source))), list)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_refused_picture_is_a_reject_and_others_go_on(server: Server, source: PromptSource) -> None:
    refusals = [
        "I'm sorry, I can't help with that.",
        {"choices": [{"message": {"content": None, "refusal": "Not this one."}}]},
        error(400, "filtered by policy", "content_filter"),
    ]
    asked: Counter[str] = Counter()

    def some(body: dict[str, Any]) -> Any:
        text = numbered(body)
        asked[text] += 1
        return refusals[list(asked).index(text)] if list(asked).index(text) < len(refusals) else text

    server.reply = some
    pictures = batch(5)
    found = [source.prompts_for(*picture, 20) for picture in pictures]
    assert [isinstance(f, Reject) for f in found] == [True, True, True, False, False]
    assert all(f.reason == Reason.NO_PROMPT for f in found[:3])
    assert ["help with that" in found[0].detail, "Not this" in found[1].detail, "policy" in found[2].detail]
    assert list(asked.values()) == [6, 6, 6, 1, 1]
    assert [source.prompts_for(*picture, 20) for picture in pictures] == found
    assert sum(asked.values()) == 20


def test_the_rest_of_too_few_is_asked_for_once(server: Server, source: PromptSource) -> None:
    few = "1. Red sky\n2. Blue sea\n3. Green hill"
    server.script = [few, "1. blue sea\n2. White wall"]
    assert one(source) == ["Red sky", "Blue sea", "Green hill", "White wall"]
    assert one(source) == ["Red sky", "Blue sea", "Green hill", "White wall"]
    assert len(server.requests) == 2
    _, answer, question = server.requests[1]["messages"]
    assert server.requests[1]["messages"][:1] == server.requests[0]["messages"]
    assert answer == {"role": "assistant", "content": few}
    assert question["role"] == "user" and "only return 17 more" in question["content"].lower()


@pytest.mark.parametrize(("then", "requests"), [("I'm sorry, that is all I have.", 2), (error(500), 7)])
def test_too_few_prompts_are_better_than_none(
    then: Any, requests: int, server: Server, source: PromptSource
) -> None:
    server.script = ["1. Red sky"]
    server.reply = lambda body: then
    assert one(source) == ["Red sky"]
    assert len(server.requests) == requests


def test_too_few_prompts_are_stored_before_the_rest_is_asked_for(
    server: Server, source: PromptSource
) -> None:
    server.script = ["1. Red sky", error(401)]
    with pytest.raises(PromptError):
        one(source)
    server.script = ["1. Blue sea"]
    assert one(source) == ["Red sky", "Blue sea"]
    assert len(server.requests) == 3 and len(server.requests[2]["messages"]) == 3


def test_an_answer_that_ran_out_of_tokens_loses_its_last_prompt(server: Server, source: PromptSource) -> None:
    cut = {"message": {"content": "1. Red sky\n2. Blue se"}, "finish_reason": "length"}
    server.script = [{"choices": [cut]}, "none"]
    assert one(source)[:2] == ["Red sky", "none"]


def test_what_is_no_picture_is_not_sent(server: Server, source: PromptSource) -> None:
    reject = source.prompts_for("image", "/images/x.txt", b"just text", 20)
    assert isinstance(reject, Reject) and reject.reason == Reason.NOT_AN_IMAGE
    assert server.requests == []


def test_an_endpoint_that_goes_away_rejects_and_one_that_never_was_stops(
    server: Server, source: PromptSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(one(source), list)
    server.reply = lambda body: CLOSED
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
    name: str, value: str, hint: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ID2_PROMPT_{name}", value)
    with pytest.raises(PromptError, match=hint) as caught:
        prompts.load("endpoint", "/images", "/out")
    assert "sk-very" not in "".join(traceback.format_exception(caught.value))


def test_a_pasted_address_and_a_key_with_a_line_end_are_understood(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ID2_PROMPT_BASE_URL", f" {server.url}/chat/completions ")
    monkeypatch.setenv("ID2_PROMPT_API_KEY", f"{KEY}\n")
    assert isinstance(one(prompts.load("endpoint", "/images", str(tmp_path))), list)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
