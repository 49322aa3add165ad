"""Prompts from a vision-language model behind an OpenAI-compatible endpoint (paper: Appendix B, Figure 11).

Every answer is stored, one file per image, before it is used: a run that is killed and started again pays
for no answer twice.

The client of `openai` would serve worse. It follows redirects, so that a picture could go to a server that
nobody named; it gives up where a server asks for a pause of more than two minutes; it keeps the key as plain
text; and an answer without prompts, which has to be asked for again, is no error to it.
"""

from __future__ import annotations

import functools
import re
import threading
import time
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import httpx
import tenacity
from PIL import Image
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from id2core.errors import PromptError
from id2core.runs.listing import PROMPTS
from id2core.settings import EnvironmentSettings
from id2core.store import datasets, storage, strict_json
from id2core.store.rejects import Reason, Reject
from id2core.translation import prompt_dialogue

FOLDER: Final = PROMPTS
LONGEST_BACKOFF: Final = 60.0
# Of a body, packed and unpacked; a hundred prompts are 20 kB.
MOST_BYTES: Final = 1 << 22
# Of the text in it.
MOST_CHARACTERS: Final = 1 << 18
# A whole answer may take so many times as long as a server may be silent.
PATIENCE: Final = 5.0
_ANY_HEADER: Final = 47  # of zlib: gzip or deflate, as the data say
# A server that asks for a longer pause than this is asked again sooner.
LONGEST_PAUSE: Final = 600.0
RETRIED: Final = frozenset({408, 409, 429})
# Error codes of a picture that a provider's filter turns away: a matter of this picture, not of the run.
FILTERED: Final = ("content_filter", "content_policy")
# Sent with status 429 by accounts without credit, where waiting changes nothing.
NO_CREDIT: Final = "insufficient_quota"
HINTS: Final = {
    400: "it does not understand the request: check that ID2_PROMPT_MODEL takes pictures",
    401: "check ID2_PROMPT_API_KEY, on every machine that runs workers",
    403: "check what the key in ID2_PROMPT_API_KEY may use, and ID2_PROMPT_MODEL",
    404: "check ID2_PROMPT_BASE_URL (up to and with /v1) and ID2_PROMPT_MODEL",
    429: "check the credit of the account",
}


class PromptSettings(EnvironmentSettings):
    """The endpoint, from environment variables `ID2_PROMPT_…`."""

    model_config = SettingsConfigDict(
        env_prefix="ID2_PROMPT_",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    # Without a default: nobody's pictures go to a service that they did not name.
    base_url: str = Field(default="", description="Address of the endpoint, up to and with /v1.")
    model: str = Field(default="", description="Name of a model that takes pictures.")
    api_key: SecretStr | None = Field(
        default=None, description="Bearer token. None for servers without keys."
    )
    request: str = Field(
        default=prompt_dialogue.REQUEST,
        description="Text of the request. {count} is replaced by the number of prompts.",
    )
    count: int = Field(default=20, ge=1, description="Prompts per request, at least.")
    timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Longest silence of the server, in seconds. A whole answer may take 5 times it.",
    )
    attempts: int = Field(default=6, ge=1, description="Requests for an image before it is rejected.")
    concurrency: int = Field(default=8, ge=1, description="Simultaneous requests of one process.")
    retry_seconds: float = Field(
        default=1.0,
        gt=0,
        description="Pause before attempt 2, in seconds. It doubles for each further attempt.",
    )

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        url = value.strip().rstrip("/").removesuffix("/chat/completions")
        if url and not re.fullmatch(r"https?://[^\s@?#]+", url):
            raise ValueError("write http(s)://HOST/v1, without user, password or query")
        return url

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value().strip() if value else ""
        if not (key.isascii() and key.isprintable()):
            raise ValueError("the key holds characters that no key has; was it copied whole?")
        return SecretStr(key) if key else None


def connect(out: str) -> EndpointPrompts:
    """Connect to the endpoint that the environment names; answers are stored below `out`.

    Raises:
        PromptError: settings are missing or out of bounds.
    """
    try:
        settings = PromptSettings()
    except ValidationError as error:
        raise PromptError(f"settings ID2_PROMPT_…: {error}") from None
    missing = [f"ID2_PROMPT_{name.upper()}" for name in ("base_url", "model") if not getattr(settings, name)]
    if missing:
        raise PromptError(
            f"set {' and '.join(missing)} (and ID2_PROMPT_API_KEY, if the server wants one) first"
        )
    return EndpointPrompts(settings, storage.join(out, FOLDER))


class _Stored(BaseModel, frozen=True):
    """The stored answers for one image: a file below `_prompts/`."""

    image_id: str
    uri: str
    model: str
    request: str
    count: int
    prompts: list[str] = []
    answers: list[str] = []
    complete: bool = False

    def plus(self, answer: _Answer) -> _Stored:
        """Return a copy with one more answer. Missing prompts are asked for once more, and no more."""
        prompts = prompt_dialogue.unique([*self.prompts, *answer.prompts])[: self.count]
        answers = [*self.answers, answer.text]
        complete = not prompts or len(prompts) == self.count or len(answers) > 1
        return self.model_copy(update={"prompts": prompts, "answers": answers, "complete": complete})


class _Answer(NamedTuple):
    text: str
    prompts: list[str]


class _UnansweredError(Exception):
    """An attempt that failed in a way that may pass. `pause`: seconds that the server asks to wait."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass(frozen=True)
class EndpointPrompts:
    """Asks a vision-language model for prompts; a `PromptSource`.

    Pickled without its key, for a pickle may end up in a bucket or a job's description: workers take
    `ID2_PROMPT_API_KEY` from their own environment.

    Attributes:
        settings: the endpoint.
        cache: URI of the folder where answers are stored.
    """

    settings: PromptSettings
    cache: str

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings.model_copy(update={"api_key": None}), "cache": self.cache}

    @property
    def identity(self) -> str:
        """Return a hash of model, request and count; where the model is served does not matter."""
        return datasets.digest_of("endpoint", self.settings.model, self.settings.request, self.settings.count)

    @property
    def place(self) -> str:
        """Return `identity`."""
        return self.identity

    @property
    def uri(self) -> str:
        """Return an empty string, because no file holds these prompts."""
        return ""

    @property
    def concurrency(self) -> int:
        """Return how many threads may ask at a time."""
        return self.settings.concurrency

    def prompts_for(
        self, image_id: str, uri: str, picture: bytes | Image.Image, count: int
    ) -> list[str] | Reject:
        """Return the first `count` prompts for a picture, or fewer if the model gives fewer.

        The model is asked for `settings.count` prompts (or `count`, if that is more) for any `count`,
        so that the prompts of a smaller count are the beginning of those of a larger one and cost nothing.

        Args:
            image_id: of the picture; its answer is stored under this.
            uri: of the picture, for people who read the stored answer.
            picture: a whole picture file, or a loaded picture; sent as JPEG of at most 512 pixels a side.
            count: at least 1.

        Returns:
            Prompts, or a `Reject`: NO_PROMPT when it is refused, PROMPT_FAILED after `settings.attempts`
            without an answer, or why `picture` is no picture.

        Raises:
            PromptError: the endpoint refuses every request, or was never reached.
        """
        wanted = max(count, self.settings.count)
        request = self.settings.request.replace("{count}", str(wanted))
        key = datasets.digest_of(image_id, request, self.settings.model, wanted)
        place = storage.join(self.cache, f"{key}.json")
        with _LOCKS[int(key, 16) % len(_LOCKS)]:
            stored = _read(place) or _Stored(
                image_id=image_id, uri=uri, model=self.settings.model, request=request, count=wanted
            )
            answered = stored if stored.complete else self._complete(stored, place, picture)
        if isinstance(answered, Reject):
            return answered
        detail = f"no prompt in the answer {answered.answers[-1][:200]!r}, stored at {place}"
        return answered.prompts[:count] or Reject(Reason.NO_PROMPT, detail)

    def _complete(self, stored: _Stored, place: str, picture: bytes | Image.Image) -> _Stored | Reject:
        url = prompt_dialogue.data_url(picture)
        if isinstance(url, Reject):
            return url
        while not stored.complete:
            missing = stored.count - len(stored.prompts)
            messages = prompt_dialogue.messages(stored.request, url, stored.answers, missing)
            answer = self._ask(messages, none_will_do=bool(stored.prompts))
            if isinstance(answer, Reject):
                return stored if stored.prompts else answer
            stored = stored.plus(answer)
            storage.write_bytes(place, stored.model_dump_json(indent=1).encode())
        return stored

    def _ask(self, messages: list[prompt_dialogue.Message], none_will_do: bool) -> _Answer | Reject:
        """Return the first answer with prompts, else the last one, else a Reject."""
        settings = self.settings
        backoff = tenacity.wait_exponential_jitter(
            settings.retry_seconds, LONGEST_BACKOFF, jitter=settings.retry_seconds
        )
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(settings.attempts),
            wait=lambda state: max(backoff(state), _pause(state)),
            retry=tenacity.retry_if_exception_type(_UnansweredError)
            | tenacity.retry_if_result(lambda answer: not (answer.prompts or none_will_do)),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        try:
            answer: _Answer = retrying(self._try, messages)
        except _UnansweredError as error:
            if not self._endpoint.reached:
                raise PromptError(
                    f"{settings.base_url} cannot be reached ({error}): check ID2_PROMPT_BASE_URL and that "
                    "the server runs"
                ) from None
            return Reject(Reason.PROMPT_FAILED, f"no answer in {settings.attempts} attempts, at last {error}")
        return answer

    def _try(self, messages: list[prompt_dialogue.Message]) -> _Answer:
        body = {"model": self.settings.model, "messages": messages}
        key = self.settings.api_key or PromptSettings().api_key
        try:
            response = self._endpoint.post(body, _Bearer(key))
        except httpx.RequestError as error:
            raise _UnansweredError(_without(key, f"{type(error).__name__}: {error}")) from None
        if response.is_success:
            return _answer(response)
        code, said = _error(response)
        said = _without(key, said)
        if any(word in code for word in FILTERED):
            return _Answer(said, [])
        status = response.status_code
        if (status in RETRIED or status >= 500) and NO_CREDIT not in code:
            raise _UnansweredError(f"HTTP {status}: {said}", _retry_after(response))
        raise PromptError(
            f"{self.settings.base_url} answers HTTP {status} to model {self.settings.model!r}: "
            f"{HINTS.get(status, 'check ID2_PROMPT_BASE_URL and ID2_PROMPT_MODEL')}. It says: {said}"
        )

    @property
    def _endpoint(self) -> _Endpoint:
        return _endpoint(self.settings.base_url, self.settings.timeout_seconds, self.settings.concurrency)


# The same picture at two URIs is asked about once, for threads that want the same answer wait for it.
_LOCKS: Final = [threading.Lock() for _ in range(1024)]


class _Endpoint:
    """The connections of this process to one endpoint. `reached`: it has answered anything at all."""

    def __init__(self, base_url: str, timeout: float, concurrency: int) -> None:
        # No limit on the wait for a free connection: it is what holds the number of requests down.
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=concurrency),
            headers={"Accept-Encoding": "identity"},
        )
        self._patience = PATIENCE * timeout
        self._url = f"{base_url}/chat/completions"
        self.reached = False

    def post(self, body: Mapping[str, object], auth: httpx.Auth) -> httpx.Response:
        deadline = time.monotonic() + self._patience
        with self._http.stream("POST", self._url, json=body, auth=auth) as response:
            self.reached = True
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise _UnansweredError(f"an answer of more than {MOST_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise _UnansweredError(f"no whole answer in {self._patience:g} s")
            content = _unpacked(bytes(data), response.headers.get("Content-Encoding", ""))
            kept = {k: v for k, v in response.headers.items() if k in ("content-type", "retry-after")}
            return httpx.Response(response.status_code, headers=kept, content=content)


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Return a body without its compression, which was not asked for, up to `MOST_BYTES`."""
    if encoding.lower() in ("", "identity"):
        return data
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise _UnansweredError(f"an answer compressed by {encoding[:40]!r}, which was not asked for")
    try:
        content = zlib.decompressobj(_ANY_HEADER).decompress(data, MOST_BYTES + 1)
    except zlib.error as error:
        raise _UnansweredError(f"an answer whose compression is damaged: {error}") from None
    if len(content) > MOST_BYTES:
        raise _UnansweredError(f"an answer of more than {MOST_BYTES:,} bytes, unpacked")
    return content


@functools.cache
def _endpoint(base_url: str, timeout: float, concurrency: int) -> _Endpoint:
    return _Endpoint(base_url, timeout, concurrency)


class _Bearer(httpx.Auth):
    """Reads the key only when a request leaves: no local variable that a traceback might show holds it."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


def _without(key: SecretStr | None, text: str) -> str:
    """Return a server's message, cut short, without the key that some servers repeat."""
    clean = " ".join(text.split())
    return (clean.replace(key.get_secret_value(), "[key]") if key else clean)[:300]


def _read(place: str) -> _Stored | None:
    return strict_json.read_model(place, _Stored, PromptError, "delete it to ask again")


def _answer(response: httpx.Response) -> _Answer:
    """Return the answer in a chat completion."""
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        if message.get("refusal"):
            return _Answer(str(message["refusal"]), [])
        content = message["content"]
        text = (
            content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _UnansweredError("HTTP 200, but not a chat completion") from None
    if not text.strip():
        raise _UnansweredError("an empty answer")
    if len(text) > MOST_CHARACTERS:
        raise _UnansweredError(f"an answer of {len(text):,} characters; {MOST_CHARACTERS:,} are read at most")
    prompts = prompt_dialogue.parse(text)
    # The last prompt of an answer that ran out of tokens ends in mid-sentence.
    return _Answer(text, prompts[:-1] or prompts if choice.get("finish_reason") == "length" else prompts)


def _error(response: httpx.Response) -> tuple[str, str]:
    """Return code and message of an error, where the server gives them in the usual form."""
    try:
        error = response.json()["error"]
        return f"{error.get('code')} {error.get('type')}", str(error["message"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", response.text or response.reason_phrase


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the server asks to wait, 0 when it does not say."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return min(error.pause, LONGEST_PAUSE) if isinstance(error, _UnansweredError) else 0.0
