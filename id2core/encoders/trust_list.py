"""The certificate authorities that an operator trusts to name signers of Content Credentials."""

from __future__ import annotations

import ssl
from typing import Final

from id2core.errors import OptionError
from id2core.store import storage

MOST_BYTES: Final = 2**20


def read(uri: str | None) -> str:
    """Return the certificates of a trust list in PEM; "" without one.

    Raises:
        OptionError: there is no such file, or it is no list of certificates.
        StorageError: it cannot be read, or is larger than 1 MiB.
    """
    if uri is None:
        return ""
    try:
        pem = storage.read_marked(storage.normalize(uri), MOST_BYTES)[0].decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except FileNotFoundError as error:
        raise OptionError(f"there is no trust list {uri}") from error
    except (ValueError, ssl.SSLError) as error:
        raise OptionError(f"{uri} is no list of certificates in PEM: {error}") from error
    return pem
