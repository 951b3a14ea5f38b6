"""TLS for a cluster: TLS 1.3 only, both sides with certificates of its authority, who is who read from these.

No session is resumed: a resumed one would not show a certificate again.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl

from lamella.cluster.channel import Channel
from lamella.cluster.folder import Credentials
from lamella.cluster.identity import Peer, peer_of
from lamella.core.errors import ClusterRefused, InvalidRequest

PROTOCOL = "lamella-cluster/1"
"""What both sides speak (ALPN, RFC 7301); another version is refused in the handshake or right after it."""
HANDSHAKE_SECONDS = 10.0


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For a member that listens: who connects must have a certificate for clients.

    Raises:
        InvalidRequest: the files are no certificate and key.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """For a member that connects.  Names are not those of DNS, so whoever connects must look at the peer.

    Raises:
        InvalidRequest: the files are no certificate and key.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials)


def joining_server_context(credentials: Credentials) -> ssl.SSLContext:
    """For the coordinator where machines join, which have no certificate yet."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.verify_mode = ssl.CERT_NONE
    return context


def joining_client_context() -> ssl.SSLContext:
    """For a machine that joins and knows a fingerprint: ``check_fingerprint`` before anything is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([PROTOCOL])
    return context


def check_fingerprint(channel: Channel, expected: bytes) -> None:
    """Refuse whoever shows another certificate.

    Raises:
        ClusterRefused: it is another one.
    """
    shown = channel.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(shown).digest(), expected):
        raise ClusterRefused("what answers there is not the coordinator that made this invite")


def peer_on(channel: Channel) -> Peer:
    """Who is at the other end, as the handshake has verified it.

    Raises:
        ClusterRefused: nobody that a certificate names, or one who speaks another protocol.
    """
    connection = channel.get_extra_info("ssl_object")
    if connection.selected_alpn_protocol() != PROTOCOL:
        raise ClusterRefused(f"the other side does not speak {PROTOCOL}; is it of another version of Lamella?")
    return peer_of(connection.getpeercert())


def _context(protocol: ssl._SSLMethod, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_alpn_protocols([PROTOCOL])
    try:
        context.load_verify_locations(credentials.authority)
        context.load_cert_chain(credentials.certificate, credentials.key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"cannot use {credentials.certificate} with {credentials.key}: {error}") from None
    return context
