"""What is said to a vision-language model to get prompts (paper: Figure 11), and how its answer is read."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NotRequired, TypedDict

from PIL import Image

from id2core.encoders import decoder_pool
from id2core.store.rejects import Reject

REQUEST: Final = (
    "I am doing image-to-image translation. Could you think of creative prompts to translate this image to "
    "different ones? Keep them creative, and only return {count} different prompts."
)
REST: Final = "Only return {count} more prompts, different from these."
PICTURE_SIDE: Final = 512


class Link(TypedDict):
    """Where a picture is: an http or `data:` URL."""

    url: str


class Part(TypedDict):
    """A part of a message: a `text`, or an `image_url`; `type` says which."""

    type: str
    text: NotRequired[str]
    image_url: NotRequired[Link]


class Message(TypedDict):
    """A message of OpenAI's chat completions."""

    role: str
    content: str | list[Part]


def messages(request: str, picture_url: str, answers: Sequence[str], missing: int) -> list[Message]:
    """Return the conversation so far, which ends with a question.

    Args:
        request: the first question.
        picture_url: the picture, a `data:` URL.
        answers: what the model has answered already.
        missing: how many prompts are still wanted.
    """
    picture: Part = {"type": "image_url", "image_url": {"url": picture_url}}
    conversation: list[Message] = [{"role": "user", "content": [{"type": "text", "text": request}, picture]}]
    for answer in answers:
        conversation += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": REST.format(count=missing)},
        ]
    return conversation


def data_url(picture: bytes | Image.Image) -> str | Reject:
    """Return a picture as a `data:` URL of a JPEG of its aspect ratio, at most 512 pixels a side.

    Args:
        picture: a whole picture file, or a loaded picture of any mode.

    Returns:
        The URL, or the Reject of `images.decode` for bytes that are no picture.
    """
    if isinstance(picture, bytes):
        decoded = decoder_pool.decode(picture, PICTURE_SIDE)
        if isinstance(decoded, Reject):
            return decoded
        image, size = Image.fromarray(decoded.pixels), (decoded.width, decoded.height)
    else:
        image, size = _opaque(picture), picture.size
    scale = min(1.0, PICTURE_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def parse(answer: str) -> list[str]:
    """Return the prompts in a model's answer, in its order; none in a refusal.

    Read are numbered and bulleted lists (with the lines that continue an item), JSON, and plain lines.
    Code fences, quotes, bold marks, headings, a preface, a farewell and repetitions are left out. Refusals,
    prefaces and farewells are recognized in English.

    Returns:
        Prompts of one line each, not empty, no two equal but for case. Never raises.
    """
    text = _FENCE.sub("", _without_thoughts(answer))
    prompts = _from_json(text) or _from_lines(text)
    return [prompt for prompt in unique(map(_clean, prompts)) if not _REFUSAL.match(prompt)]


def unique(prompts: Iterable[str]) -> list[str]:
    """Return the prompts with a letter, each once: the first of those that differ only in case."""
    kept: dict[str, str] = {}
    for prompt in prompts:
        if any(map(str.isalpha, prompt)):
            kept.setdefault(prompt.casefold(), prompt)
    return list(kept.values())


# What a server answers is read in one pass each: no pattern below may look for its end from many starts.
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
# The fences around an answer.
_FENCE: Final = re.compile(r"^[ \t]*```\w*[ \t]*$", re.MULTILINE)
# Opens and closes at the edge of a line, or a bracket within a sentence would pass for JSON.
_JSON_START: Final = re.compile(r"^[ \t]*([\[{])", re.MULTILINE)
_JSON_END: Final = re.compile(r"([\]}])[ \t]*$", re.MULTILINE)
_FIELD: Final = re.compile(r"prompt|text|description", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(prompt\s*)?[#(]?\d{1,3}([.):]\s+|[.)](?=[^\W\d]|[\"'“]|$))", re.IGNORECASE)
_BULLET: Final = re.compile(r"[-*+•–—▪◦·]\s+")
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "«": "»", "‘": "'"}
_SUBJECT = r"\b(prompts?|ideas?|translations?|suggestions?|variations?|options?|transformations?)\b"
_OPENER = r"(sure|certainly|of course|absolutely|okay|ok|great|yes|here|below|these|the following)\b"
_PREFACE: Final = re.compile(rf".*:$|{_OPENER}.*{_SUBJECT}|{_OPENER}(\s\w+)?[!.,]$", re.IGNORECASE)
# A preface and the only prompt in one line.
_LED: Final = re.compile(rf"({_OPENER}[^:]*):\s*(?=\S)", re.IGNORECASE)
_ABOUT_PROMPTS: Final = re.compile(_SUBJECT, re.IGNORECASE)
_FAREWELL: Final = re.compile(
    r"(please )?(let me know|feel free|i hope|hope (this|these)|enjoy\b|would you like)"
    r"|if you(['’]d| would)\b",
    re.IGNORECASE,
)
_REFUSAL: Final = re.compile(
    r"(i['’]?m|i am) ((very|so|really|truly) )?sorry\b|sorry\b|i apologi[sz]e|my apologies"
    r"|unfortunately,? i\b|i (can['’]t|can ?not|won['’]t|will not|must decline)\b"
    r"|(i['’]m|i am) (unable|not able|not comfortable)\b|as an ai\b",
    re.IGNORECASE,
)
_AFTER_ALL: Final = re.compile(r"\bhere(['’]s| is| are)\b", re.IGNORECASE)


def _from_json(text: str) -> list[str]:
    start = _JSON_START.search(text)
    end = max((match.end(1) for match in _JSON_END.finditer(text)), default=0)
    if start is None or end <= start.start(1):
        return []
    try:
        return [_NUMBER.sub("", s, count=1) for s in _strings(json.loads(text[start.start(1) : end]))]
    except (ValueError, RecursionError):
        return []


def _strings(value: Any) -> list[str]:
    """Yield the strings of a JSON value; of an object with known names, only their values."""
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, dict):
        named = [v for k, v in value.items() if _FIELD.search(k)]
        return _strings(named or list(value.values()))
    return [s for v in value for s in _strings(v)] if isinstance(value, list) else []


def _without_thoughts(answer: str) -> str:
    """Return an answer without what a model that reasons aloud thought before."""
    kept, place = [], 0
    while (start := answer.find(_THOUGHT, place)) >= 0:
        end = answer.find(_THOUGHT_END, start)
        if end < 0:
            break
        kept.append(answer[place:start])
        place = end + len(_THOUGHT_END)
    return "".join([*kept, answer[place:]])


def _from_lines(text: str) -> list[str]:
    lines = [line.replace("**", "").replace("__", "").expandtabs(4).rstrip() for line in text.splitlines()]
    for marker in (_NUMBER, _BULLET):
        if any(marker.match(_bare(line)) for line in lines):
            return _marked(lines, marker)
    return _unmarked([line.strip() for line in lines if line.strip() and not line.startswith("#")])


def _bare(line: str) -> str:
    """Return a line without indentation and the marks of a heading."""
    return line.lstrip(" #")


def _marked(lines: list[str], marker: re.Pattern[str]) -> list[str]:
    """Return the items of a list; indented lines and those right below an item belong to it."""
    first = next(i for i, line in enumerate(lines) if marker.match(_bare(line)))
    preface = " ".join(lines[:first]).strip()
    if _REFUSAL.match(preface) and not _AFTER_ALL.search(preface):
        return []
    # Numbers set flush right differ by one column; a list within an item is set in further.
    deepest = _indent(lines[first]) + 1
    items: list[list[str]] = []
    going_on = False
    for line in lines[first:]:
        bare = _bare(line)
        item = marker.match(bare)
        if item and _indent(line) <= deepest:
            items.append([bare[item.end() :]])
        elif _continues(line, going_on):
            items[-1].append(_BULLET.sub("", bare, count=1))
        going_on = bool(bare) and not line.startswith("#")
    return [" ".join(parts) for parts in items]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _continues(line: str, going_on: bool) -> bool:
    if line.startswith("#") or _FAREWELL.match(line) or not any(map(str.isalpha, line)):
        return False
    return going_on or line.startswith(" ")


def _unmarked(lines: list[str]) -> list[str]:
    """Return plain lines, one prompt each."""
    if lines and _REFUSAL.match(lines[0]):
        return []
    first, last = 0, len(lines)
    while last and _FAREWELL.match(lines[last - 1]):
        last -= 1
    while last - first > 1 and _PREFACE.match(lines[first]) and not _preface_end(lines[first]):
        first += 1
    return [line[_preface_end(line) :] for line in lines[first:last] if not line.endswith(":")]


def _preface_end(line: str) -> int:
    """Return where the prompt begins in a line that leads to it, 0 in any other."""
    match = _LED.match(line)
    return match.end() if match and _ABOUT_PROMPTS.search(match[1]) else 0


def _clean(item: str) -> str:
    text = " ".join(item.split())
    closing = _QUOTES.get(text[:1])
    if closing:
        text = text.rstrip(",;")
        inner = text[1:-1]
        # Quotes that close within belong to the words.
        if text.endswith(closing) and closing not in inner and text[0] not in inner:
            return inner.strip()
    return text
