"""What a language model answers, and the prompts in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.translation.prompt_dialogue import parse

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
        "I cannot create prompts for this image. What I can do:\n- describe it\n- count its colors",
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


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(st.one_of(st.text(), st.text(alphabet="1.)-*\n \t#[]{}\":,'`ab“")))
def test_no_answer_breaks_the_reader(answer: str) -> None:
    prompts = parse(answer)
    assert len({p.casefold() for p in prompts}) == len(prompts)
    assert all(p and p == " ".join(p.split()) for p in prompts)


SIZE = 1 << 18
SLOW = {
    "thoughts": "<think>" * (SIZE // 7),
    "brackets": "[\n" * (SIZE // 2),
    "bracket_lines": "[x\n" * (SIZE // 3) + "]x",
    "ends": "]" * SIZE,
    "spaces": "[" + " " * SIZE + "x",
    "continued": "1. a\n" + " b\n" * (SIZE // 3),
    "farewells": "a\n" + "enjoy\n" * (SIZE // 6),
    "prefaces": "here are ideas\n" * (SIZE // 15),
    "no_colon": "sure " + "prompt " * (SIZE // 7),
    "colons": "sure " + "prompt: " * (SIZE // 8),
    "numbers": "1" * SIZE,
    "fences": "```" * (SIZE // 3),
    "quotes": "“" * SIZE,
    "sorry": "i am very " * (SIZE // 10),
}


@pytest.mark.parametrize("kind", SLOW)
def test_the_longest_answer_is_read_in_one_pass(kind: str) -> None:
    started = time.process_time()
    parse(SLOW[kind])
    assert time.process_time() - started < 5  # a pass over pairs of characters takes minutes
