"""Messages to a webhook: a run failed, a night found new matches, or something is off.

    ID2_WEBHOOK_URL=https://chat.example.com/hooks/… id2 nightly …

A message is one JSON object. Its `text` is what chat services show, and the other fields are for programs.
A message that cannot be delivered is a line of the log: it never fails the run that it is about.
"""

from __future__ import annotations

import html
import ipaddress
import logging
import socket
import threading
import time
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from id2core.errors import ID2Error, OptionError, WebhookError, printable
from id2core.settings import EnvironmentSettings

log = logging.getLogger("id2.notifications")
# Seconds that a server may be silent, that all attempts together may take, and before each new attempt.
SILENCE_SECONDS, PATIENCE_SECONDS = 10.0, 60.0
PAUSES: Final = (1.0, 5.0)
# Characters of a message that a person reads.
_LONGEST = 1500
_RETRIED = frozenset({408, 425, 429})


class Event(StrEnum):
    """What a message is about."""

    FAILURE = "failure"
    MATCHES = "matches"
    OFF = "something_is_off"


class Message(BaseModel):
    """What is sent.

    Attributes:
        event: what it is about.
        flow: name of the flow.
        run: name of the run in Prefect.
        text: for a person; plain text.
        counts: such as matches by verdict.
        links: name → address, such as that of the report.
    """

    model_config = ConfigDict(frozen=True)

    event: Event
    flow: str
    run: str
    text: str
    counts: dict[str, int] = {}
    links: dict[str, str] = {}

    def payload(self) -> dict[str, JsonValue]:
        """Return the JSON object. Names of files may be in it, and a chat service must not obey them."""
        lines = [self.text, *(f"{name}: {link}" for name, link in self.links.items())]
        shown = "\n".join(printable(line) for line in "\n".join(lines).splitlines())
        text = html.escape(shown[:_LONGEST], quote=False)
        return self.model_dump(mode="json") | {"text": text}


class NotificationSettings(EnvironmentSettings):
    """Where messages go. The address is a secret: whoever has it can write to the channel."""

    model_config = SettingsConfigDict(
        env_prefix="ID2_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    webhook_url: SecretStr | None = Field(None, description="Address that messages are sent to, by POST.")


def load_url() -> str | None:
    """Return the address of `ID2_WEBHOOK_URL`; None where none is set.

    Raises:
        OptionError: the settings cannot be read.
    """
    try:
        url = NotificationSettings().webhook_url
    except ValidationError as error:
        raise OptionError(f"ID2_WEBHOOK_URL: {error.errors()[0]['msg']}") from error
    return url.get_secret_value().strip() if url else None


def notify(message: Message) -> bool:
    """Send a message where a webhook is set; return whether it arrived. Never raises, never hangs."""
    sent: list[bool] = []

    def work() -> None:
        try:
            url = load_url()
            if url:
                send(url, message.payload())
                sent.append(True)
        except Exception as error:
            # Not the message of the error: a library may have written the address into it.
            reason = str(error) if isinstance(error, ID2Error) else type(error).__name__
            log.warning("the webhook got no message of %s: %s", message.event, reason)

    # A server that sends a byte now and then keeps any timeout of a single read from ending it.
    thread = threading.Thread(target=work, name="webhook", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        log.warning("the webhook took no message of %s within %.0f s", message.event, PATIENCE_SECONDS)
    return bool(sent)


def send(url: str, payload: dict[str, Any]) -> None:
    """Send a JSON object, and again after a fault that may pass.

    No redirect is followed and no answer is read: whoever answers cannot have this machine ask elsewhere.

    Raises:
        WebhookError: the address is not allowed, or no attempt was taken. It does not name the address.
    """
    check_address(url)
    failure = ""
    for pause in (*PAUSES, None):
        failure, passing = _post(url, payload)
        if not failure:
            return
        if not passing or pause is None:
            break
        time.sleep(pause)
    raise WebhookError(failure)


def _post(url: str, payload: dict[str, Any]) -> tuple[str, bool]:
    """Return what went wrong, empty where nothing did, and whether it may pass."""
    try:
        with (
            httpx.Client(timeout=SILENCE_SECONDS, follow_redirects=False) as client,
            client.stream("POST", url, json=payload) as response,
        ):
            status = response.status_code
    except httpx.HTTPError as error:
        return f"it cannot be reached ({type(error).__name__}): check ID2_WEBHOOK_URL", True
    if 200 <= status < 300:
        return "", False
    if 300 <= status < 400:
        return f"it answered {status}, and redirects are not followed: set the address that it names", False
    return f"it answered {status}: check ID2_WEBHOOK_URL", status in _RETRIED or status >= 500


def check_address(url: str) -> None:
    """Refuse an address that no webhook has.

    https anywhere, and http where the host is of a private network. Addresses that are valid on one link only
    (among them those that give cloud machines their credentials), multicast and reserved ones are refused.

    Raises:
        WebhookError: says why, without the address.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise WebhookError("ID2_WEBHOOK_URL is no address: write https://HOST/PATH") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise WebhookError("ID2_WEBHOOK_URL is no address of a webhook: write https://HOST/PATH")
    private = [_is_private(address) for address in _addresses(host, port)]
    if parts.scheme == "http" and not all(private):
        raise WebhookError("ID2_WEBHOOK_URL is http, which anyone on the way can read: write https")


def _addresses(host: str, port: int | None) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebhookError("the host of ID2_WEBHOOK_URL has no address") from error
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def _is_private(text: str) -> bool:
    """Return whether an address is of a private network.

    Raises:
        WebhookError: no webhook can be there.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    # The loopback address of IPv6 counts as reserved.
    odd = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
    if odd and not address.is_loopback:
        raise WebhookError("ID2_WEBHOOK_URL names a host whose address is link-local, multicast or reserved")
    return address.is_private
