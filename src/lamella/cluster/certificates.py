"""The cluster's certificate authority: keys and certificates as PEM, made and signed here and nowhere else.

    authority = new_authority(cluster_id)
    key, request = new_request()                                    # on the node; the key never leaves it
    certificate = authority.sign(request, Identity(cluster_id, "node", "laptop"))

Keys are of curve P-256.  A node's certificate is good for serving only (extended key usage), a coordinator's for both:
no node can pass for a coordinator, with another node least of all.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lamella.cluster.identity import Identity
from lamella.core.errors import ClusterRefused

LIFETIME = timedelta(days=3650)
"""Of all certificates.  A node is shut out by revoking it, not by waiting."""
CLOCK_DIFFERENCE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Signed:
    """What the authority has signed.

    Attributes:
        certificate: PEM.
        serial: hexadecimal.
    """

    certificate: bytes
    serial: str


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificate and key of a cluster's authority, PEM.  Whoever has the key makes members."""

    certificate: bytes
    key: bytes

    def sign(self, request: bytes, identity: Identity) -> Signed:
        """Certify that the key of a signing request belongs to a member.

        What the request says of itself is not looked at; only that its sender has the key.

        Raises:
            ClusterRefused: it is no signing request for a P-256 key, or was not signed with that key.
        """
        key = _key_of(request)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        if identity.role == "coordinator":
            usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        issuer = x509.load_pem_x509_certificate(self.certificate)
        certificate = (
            _builder(issuer.subject, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(_private(self.key), hashes.SHA256())
        )
        return Signed(_pem(certificate), f"{certificate.serial_number:x}")


def new_authority(cluster: str) -> Authority:
    """An authority that may sign members and no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"lamella cluster {cluster}")])
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _private_pem(key))


def new_request() -> tuple[bytes, bytes]:
    """A new private key, and a request to certify it: both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return _private_pem(key), request.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a PEM certificate's DER form."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))).digest()


def _key_of(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" and parsed.is_signature_valid:
            return key
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ClusterRefused(f"no certificate signing request: {error}") from None
    raise ClusterRefused("a signing request must be for a P-256 key, and be signed with it")


def _builder(issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_DIFFERENCE)
        .not_valid_after(now + LIFETIME)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # we made it
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
