"""Messages to a real webhook, and to addresses and servers that take none."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flows import notifications
from flows.notifications import Event, Message, check_address, notify
from id2core.errors import WebhookError
from tests.webhook_server import Webhook, serving

MESSAGE = Message(
    event=Event.MATCHES,
    flow="nightly",
    run="nightly 2026-11-25",
    text="3 new matches",
    counts={"match": 3},
    links={"report": "https://storage.cloud.google.com/b/report.html"},
)


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with serving() as server:
        monkeypatch.setenv("ID2_WEBHOOK_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(notifications, "PAUSES", (0.01, 0.01))
        yield server


def test_a_message_has_text_for_people_and_fields_for_programs(webhook: Webhook) -> None:
    assert notify(MESSAGE)
    [message] = webhook.messages
    assert message["text"] == "3 new matches\nreport: https://storage.cloud.google.com/b/report.html"
    assert (message["event"], message["counts"]) == ("matches", {"match": 3})


def test_without_a_webhook_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ID2_WEBHOOK_URL", raising=False)
    assert not notify(MESSAGE)


def test_names_in_a_message_are_no_commands_to_a_chat_service(webhook: Webhook) -> None:
    notify(MESSAGE.model_copy(update={"text": "failed: <!channel> & \x1b[2J\u202egnp.exe" + "x" * 5000}))
    [message] = webhook.messages
    assert message["text"].startswith("failed: &lt;!channel&gt; &amp; \\x1b[2J\\u202e")
    assert len(message["text"]) < 2000


def test_faults_that_pass_are_tried_again(webhook: Webhook) -> None:
    webhook.statuses = [503, 429, 200]
    assert notify(MESSAGE)
    assert len(webhook.messages) == 3


@pytest.mark.parametrize(("status", "attempts"), [(500, 3), (404, 1), (302, 1)])
def test_what_is_not_taken_is_a_warning_without_the_address(
    webhook: Webhook, caplog: pytest.LogCaptureFixture, status: int, attempts: int
) -> None:
    webhook.statuses, webhook.headers = [status], {"Location": webhook.url}
    with caplog.at_level(logging.WARNING, "id2.notifications"):
        assert not notify(MESSAGE)
    assert len(webhook.messages) == attempts, "no redirect is followed"
    assert str(status) in caplog.text and "s3cret" not in caplog.text


def test_a_server_that_is_gone_or_silent_does_not_hold_a_run(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifications, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(notifications, "send", lambda *_: notifications.time.sleep(5))
    assert not notify(MESSAGE)
    assert "took no message" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(notifications, "PAUSES", ())
    monkeypatch.setenv("ID2_WEBHOOK_URL", "http://127.0.0.1:9/s3cret")
    assert not notify(MESSAGE)
    assert "cannot be reached" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "https:///x",
        "chat.example.com/hook",
        "https://user:password@127.0.0.1/",
        "http://169.254.169.254/computeMetadata/v1/",
        "https://[fe80::1]/",
        "https://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://8.8.8.8/hook",
        "https://127.0.0.1:99999/",
        "https://no-such-host.invalid/",
    ],
)
def test_addresses_that_no_webhook_has_are_refused_without_being_named(url: str) -> None:
    with pytest.raises(WebhookError) as refused:
        check_address(url)
    assert url not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "http://[::1]:80/x", "http://10.1.2.3/x", "https://8.8.8.8/x"]
)
def test_private_networks_may_use_http_and_others_https(url: str) -> None:
    check_address(url)
