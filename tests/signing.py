"""Pictures with Content Credentials, signed by certificates made here. Needs the extra `c2pa`."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Signer:
    """A certificate with its key, and the authority that issued it; None for an authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    authority: Signer | None = None

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @staticmethod
    def issued(name: str, authority: Signer | None = None, days: float = 300) -> Signer:
        """Return a new authority, or a signer with its certificate, valid for `days` from yesterday on."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        subject = x509.Name([*subject, x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{name}, Inc.")])
        issuer = authority.certificate.subject if authority else subject
        by = authority.key if authority else key
        signs = authority is not None
        start = datetime.now(UTC) - timedelta(days=1)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("encipher_only", "decipher_only"), False)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=not signs, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=signs, key_cert_sign=not signs, crl_sign=not signs, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
        )
        if signs:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return Signer(builder.sign(by, hashes.SHA256()), key, authority)

    def sign(
        self,
        data: bytes,
        kind: str = "jpeg",
        *,
        generator: str = "Painter",
        source_type: str | None = AI,
        parent: bytes | None = None,
        thumbnail: bytes | None = None,
        remote: str | None = None,
        note: object = None,
    ) -> bytes:
        """Return a picture file with a manifest; with `remote`, only with the URL of one.

        Args:
            thumbnail: of the parent; by default a small picture of it.
            note: what an assertion of no meaning holds.
        """
        import c2pa

        manifest: dict[str, Any] = {
            "claim_generator_info": [{"name": generator, "version": "1.2"}],
            "assertions": [],
        }
        if source_type:
            action = {"action": "c2pa.created", "digitalSourceType": source_type}
            manifest["assertions"].append({"label": "c2pa.actions", "data": {"actions": [action]}})
        if note:
            manifest["assertions"].append({"label": "org.example.note", "data": {"note": note}})
        builder = c2pa.Builder.from_json(json.dumps(manifest))
        if not source_type:
            builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        if parent:
            ingredient: dict[str, Any] = {"relationship": "parentOf"}
            if thumbnail is not None:
                builder.add_resource("thumbnail", io.BytesIO(thumbnail))
                ingredient["thumbnail"] = {"format": "image/jpeg", "identifier": "thumbnail"}
            builder.add_ingredient(ingredient, "image/jpeg", io.BytesIO(parent))
        if remote:
            builder.set_remote_url(remote)
            builder.set_no_embed()
        signed = io.BytesIO()
        builder.sign(self._native, f"image/{kind}", io.BytesIO(data), signed)
        return signed.getvalue()

    @functools.cached_property
    def _native(self) -> Any:
        import c2pa

        chain = self.pem + (self.authority.pem if self.authority else "")
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain.encode(), private_key=key, ta_url=None)
        return c2pa.Signer.from_info(info)
