"""Certificate authorities and what they sign, as PEM files."""

import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECONDS = 30
DAY = datetime.timedelta(days=1)
LOCALHOST = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])


@dataclass(frozen=True)
class Pair:
    """The PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def replace_by(self, other):
        """Put another pair in this one's place, the key a moment after the certificate, as two renames do."""
        for mine, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            fresh = mine.with_suffix(".new")
            fresh.write_bytes(theirs.read_bytes())
            fresh.replace(mine)


class Authority:
    """Signs certificates; its own is the file `certificate`."""

    def __init__(self, folder, name="authority"):
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._sign(self._name, self._key.public_key(), DAY, (constraints, True))
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(_pem(certificate))

    def issue(self, name, lasts=DAY):
        """A pair for localhost, by `name`; one that `lasts` a negative time has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), lasts, (LOCALHOST, False))
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key.pem")
        pair.certificate.write_bytes(_pem(certificate))
        private = serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, private, encryption_algorithm=serialization.NoEncryption())
        )
        return pair

    def _sign(self, subject, public_key, lasts, extension):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - 2 * DAY).not_valid_after(now + lasts)
        value, critical = extension
        return builder.add_extension(value, critical=critical).sign(self._key, hashes.SHA256())


def encrypted_key(pair):
    """The key of a pair, as PEM under a password."""
    key = serialization.load_pem_private_key(pair.key.read_bytes(), password=None)
    encryption = serialization.BestAvailableEncryption(b"password")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def serial_number(pem):
    """The serial number of a PEM certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number


def served_serial_number(address):
    """The serial number of the certificate that a new connection gets."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return serial_number(ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True)).encode())


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)
