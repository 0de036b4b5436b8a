"""The certificates of a stack on one machine."""

import ipaddress
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from cli import pki

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SERVICES = ("user", "gateway")


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "pki"


def certificate(tls):
    return x509.load_pem_x509_certificate(tls.certificate_file.read_bytes())


def test_a_service_is_named_by_its_certificate(directory):
    made = pki.prepare(directory, SERVICES, now=NOW)

    shown = certificate(made.services["user"])
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://tallystick/user"]
    assert names.get_values_for_type(x509.DNSName) == ["user.tallystick.internal", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.IPv4Address("127.0.0.1")]
    usage = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_what_clients_see_is_of_another_authority_and_names_no_service(directory):
    made = pki.prepare(directory, SERVICES, now=NOW)

    shown = certificate(made.listener)
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == []
    assert made.listener.ca_file != made.services["user"].ca_file
    internal = x509.load_pem_x509_certificate(made.services["user"].ca_file.read_bytes())
    with pytest.raises(ValueError, match="does not match"):
        shown.verify_directly_issued_by(internal)


def test_keys_are_for_their_owner_only_and_no_authority_leaves_its_own(directory):
    pki.prepare(directory, SERVICES, now=NOW)

    keys = sorted(directory.glob("*.key"))
    assert [key.stem for key in keys] == ["gateway", "listener", "user"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_certificates_are_kept_while_a_stack_can_run_on_them_for_long(directory):
    first = pki.prepare(directory, SERVICES, now=NOW).listener.certificate_file.read_bytes()

    later = pki.prepare(directory, SERVICES, now=NOW + timedelta(days=300))
    assert later.listener.certificate_file.read_bytes() == first


def test_all_certificates_are_made_anew_before_they_end(directory):
    made = pki.prepare(directory, SERVICES, now=NOW)
    before = [certificate(tls) for tls in (made.listener, *made.services.values())]

    late = NOW + timedelta(days=350)
    made = pki.prepare(directory, SERVICES, now=late)

    after = [certificate(tls) for tls in (made.listener, *made.services.values())]
    assert not set(before) & set(after)
    assert all(shown.not_valid_after_utc > late + timedelta(days=365) for shown in after)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda tls: tls.key_file.unlink(), id="a key is missing"),
        pytest.param(lambda tls: tls.certificate_file.write_text(""), id="a certificate is empty"),
        pytest.param(
            lambda tls: tls.key_file.write_bytes(tls.key_file.with_stem("gateway").read_bytes()),
            id="a key is another's",
        ),
        pytest.param(
            lambda tls: tls.ca_file.write_bytes(tls.ca_file.with_stem("public-ca").read_bytes()),
            id="the authority is another",
        ),
    ],
)
def test_what_a_start_that_was_cut_off_leaves_is_made_whole(directory, harm):
    made = pki.prepare(directory, SERVICES, now=NOW)
    harm(made.services["user"])

    made = pki.prepare(directory, SERVICES, now=NOW)

    for tls in made.services.values():
        authority = x509.load_pem_x509_certificate(tls.ca_file.read_bytes())
        certificate(tls).verify_directly_issued_by(authority)
