"""Certificates of a stack on one machine: one authority for services, another for clients."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.environment import Tls

TRUST_DOMAIN = "tallystick"
INTERNAL = "internal-ca"
PUBLIC = "public-ca"
# What Envoy shows to clients, beside the name of a service.
LISTENER = "listener"

_LIFE = timedelta(days=397)
# A stack that starts today must be able to run this long.
_LEFT_AT_LEAST = timedelta(days=60)
# Clocks of containers and virtual machines lag.
_BACKDATE = timedelta(hours=1)


class Authority:
    """Issues certificates into a directory. Its key is never written: for one more, start anew.

    Args:
        directory: Where PEM files go. Made, readable by its owner only.
        name: The authority's common name and the stem of its file.
        now: UTC. Certificates are valid from an hour before it.
    """

    def __init__(self, directory: Path, name: str, *, now: datetime) -> None:
        self._directory = directory
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        self.ca_file = directory / f"{name}.pem"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        builder = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificate_sign=True), critical=True)
        )
        _write(self.ca_file, _pem(builder.sign(self._key, hashes.SHA256())))

    def issue_service(self, service: str) -> Tls:
        """A certificate that one service shows to the others, as server and as client."""
        return self._issue(
            service,
            [
                x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{service}"),
                x509.DNSName(f"{service}.{TRUST_DOMAIN}.internal"),
                *_loopback(),
            ],
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        )

    def issue_listener(self) -> Tls:
        """The certificate that the gateway shows to clients on this machine."""
        return self._issue(LISTENER, _loopback(), [ExtendedKeyUsageOID.SERVER_AUTH])

    def _issue(
        self,
        name: str,
        alternatives: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
    ) -> Tls:
        key = ec.generate_private_key(ec.SECP256R1())
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            self._builder(_common_name(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificate_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(authority_key, critical=False)
        )
        tls = _paths(self._directory, name, self.ca_file)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(tls.key_file, private)
        _write(tls.certificate_file, _pem(builder.sign(self._key, hashes.SHA256())))
        return tls

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BACKDATE)
            .not_valid_after(self._now + _LIFE)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )


@dataclass(frozen=True)
class Pki:
    """Every certificate of one stack."""

    services: dict[str, Tls]
    # What Envoy shows to clients; its `ca_file` is what clients trust.
    listener: Tls


def prepare(directory: Path, services: Iterable[str], *, now: datetime) -> Pki:
    """The certificates in a directory; all made anew where one is missing or near its end."""
    names = sorted(services)
    pki = Pki(
        {name: _paths(directory, name, directory / f"{INTERNAL}.pem") for name in names},
        _paths(directory, LISTENER, directory / f"{PUBLIC}.pem"),
    )
    if not all(_is_usable(tls, now) for tls in (pki.listener, *pki.services.values())):
        internal = Authority(directory, INTERNAL, now=now)
        for name in names:
            internal.issue_service(name)
        Authority(directory, PUBLIC, now=now).issue_listener()
    return pki


def _is_usable(tls: Tls, now: datetime) -> bool:
    try:
        key = serialization.load_pem_private_key(tls.key_file.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate(tls.certificate_file.read_bytes())
        authority = x509.load_pem_x509_certificate(tls.ca_file.read_bytes())
        # A start that was cut off may have left files of two authorities.
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - whatever is wrong with a file, the answer is to make it anew
        return False
    return (
        key.public_key() == certificate.public_key()
        and certificate.not_valid_before_utc <= now
        and now + _LEFT_AT_LEAST <= certificate.not_valid_after_utc
    )


def _paths(directory: Path, name: str, ca_file: Path) -> Tls:
    return Tls(directory / f"{name}.pem", directory / f"{name}.key", ca_file)


def _loopback() -> list[x509.GeneralName]:
    return [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{TRUST_DOMAIN} {name}")])


def _usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    part.replace(path)
