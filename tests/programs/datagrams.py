#!/usr/bin/env python3
"""Makes files of the first datagrams of QUIC clients, each with its length in two bytes (little endian) before it:
datagrams.py FOLDER. Needs openssl, and aioquic of PyPI. The file `chromium` is not made here: a real Chromium sent it to a
UDP socket that never answers, started with --origin-to-force-quic-on and --host-resolver-rules."""
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion, encode_quic_retry, encode_quic_version_negotiation

out = Path(sys.argv[1])


def write(name, datagrams):
    (out / name).write_bytes(b"".join(len(d).to_bytes(2, "little") + d for d in datagrams))
    print(name, [len(d) for d in datagrams])


def client(name, **options):
    configuration = QuicConfiguration(is_client=True, server_name=name, verify_mode=ssl.CERT_NONE, **options)
    return QuicConnection(configuration=configuration)


def first_flight(name, versions=(), **options):
    connection = client(name, **options)
    if versions:
        connection._configuration.original_version = versions[0]
        connection._configuration.supported_versions = list(versions)
    connection.connect(("192.0.2.1", 443), now=0.0)
    return connection, [datagram for datagram, _ in connection.datagrams_to_send(now=0.0)]


V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2
write("aioquic-v1", first_flight("aioquic.example", [V1], alpn_protocols=["h3"])[1])
write("aioquic-v2", first_flight("second.example", [V2], alpn_protocols=["h3", "hq-interop"])[1])
# A hello that does not fit into one datagram.
long = ["x%03d" % number + "y" * 200 for number in range(12)]
write("aioquic-long", first_flight("long.example", [V1], alpn_protocols=["h3", *long])[1])
write("aioquic-no-name", first_flight(None, [V1], alpn_protocols=["h3"])[1])

# After a retry: another destination, other keys, a token, and the same hello.
connection, first = first_flight("retried.example", [V1], alpn_protocols=["h3"])
original = connection._peer_cid.cid
retry = encode_quic_retry(version=V1, source_cid=b"server", destination_cid=connection.host_cid,
                          original_destination_cid=original, retry_token=b"token" * 9)
connection.receive_datagram(retry, ("192.0.2.1", 443), now=0.1)
again = [datagram for datagram, _ in connection.datagrams_to_send(now=0.1)]
write("aioquic-retried", again)
write("aioquic-retry", [retry])
write("aioquic-negotiation", [encode_quic_version_negotiation(
    source_cid=original, destination_cid=connection.host_cid, supported_versions=[V1, V2])])


def server(store=None, fetch=None):
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    with tempfile.TemporaryDirectory() as folder:
        key, cert = f"{folder}/key", f"{folder}/cert"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
                        "-out", cert, "-subj", "/CN=resumed.example", "-days", "1"], check=True, stderr=subprocess.DEVNULL)
        configuration.load_cert_chain(cert, key)
    return configuration, store, fetch


def exchange(connection, first, configuration, store, fetch, original):
    """Both ends talk until nothing is left to say; what each has sent, in order."""
    peer = QuicConnection(configuration=configuration, original_destination_connection_id=original,
                          session_ticket_handler=store, session_ticket_fetcher=fetch)
    sent, now = [[], []], 0.0
    toward, pending = 1, first
    for _ in range(20):
        sent[1 - toward] += pending
        now += 0.01
        receiver = (connection, peer)[toward]
        for datagram in pending:
            receiver.receive_datagram(datagram, ("192.0.2.1", 443), now=now)
        pending = [datagram for datagram, _ in receiver.datagrams_to_send(now=now)]
        toward = 1 - toward
    return sent


tickets, issued = [], {}
settings = server(lambda ticket: issued.__setitem__(ticket.ticket, ticket), lambda label: issued.pop(label, None))
configuration = QuicConfiguration(is_client=True, server_name="resumed.example", verify_mode=ssl.CERT_NONE,
                                  alpn_protocols=["h3"], original_version=V1, supported_versions=[V1])
connection = QuicConnection(configuration=configuration, session_ticket_handler=tickets.append)
connection.connect(("192.0.2.1", 443), now=0.0)
first = [datagram for datagram, _ in connection.datagrams_to_send(now=0.0)]
sent = exchange(connection, first, *settings, connection._peer_cid.cid)
write("aioquic-second-flight", sent[0][1:4])
write("aioquic-server", sent[1][:3])

configuration = QuicConfiguration(is_client=True, server_name="resumed.example", verify_mode=ssl.CERT_NONE, session_ticket=tickets[0],
                                  alpn_protocols=["h3"], original_version=V1, supported_versions=[V1])
connection = QuicConnection(configuration=configuration)
connection.connect(("192.0.2.1", 443), now=0.0)
connection.send_stream_data(0, b"early" * 40)
write("aioquic-early-data", [datagram for datagram, _ in connection.datagrams_to_send(now=0.0)])
