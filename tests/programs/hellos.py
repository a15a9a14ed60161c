#!/usr/bin/env python3
"""Catches what TLS clients say first: hellos.py FOLDER. Needs openssl, curl, node, and curl_cffi of PyPI. The file
`chromium` is not made here: a real Chromium sent it to a listener, and `crafted-*` have what no client at hand sends."""
import os, socket, ssl, subprocess, sys, tempfile, threading, time
from pathlib import Path

out = Path(sys.argv[1])


def catch(name, client):
    """Runs client(port) against a listener that reads until nothing more comes, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        runner = threading.Thread(target=client, args=(port,), daemon=True)
        runner.start()
        server.settimeout(20)
        peer, _ = server.accept()
        peer.settimeout(0.5)
        caught = b""
        try:
            while part := peer.recv(65536):
                caught += part
        except (TimeoutError, ConnectionError):
            pass
        peer.close()
        runner.join(20)
    assert caught[:2] == b"\x16\x03", (name, caught[:16])
    (out / name).write_bytes(caught)
    print(name, len(caught))


def run(*command):
    return lambda port: subprocess.run([part.replace("PORT", str(port)) for part in command], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)


def openssl(*options):
    return run("openssl", "s_client", "-connect", "127.0.0.1:PORT", *options)


def python(name):
    def client(port):
        context = ssl._create_unverified_context()
        try:
            with socket.create_connection(("127.0.0.1", port)) as plain:
                context.wrap_socket(plain, server_hostname=name)
        except OSError:
            pass
    return client


def browser(which):
    def client(port):
        from curl_cffi import CurlOpt, requests
        try:
            requests.get(f"https://{which}.example:{port}/", impersonate=which, verify=False, timeout=3,
                         curl_options={CurlOpt.RESOLVE: [f"{which}.example:{port}:127.0.0.1"]})
        except requests.RequestsError:
            pass
    return client


def session(folder, version):
    """A session with a real server, to be resumed."""
    key, cert, kept = (f"{folder}/{name}" for name in ("key", "cert", version))
    if not os.path.exists(key):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                        key, "-out", cert, "-subj", "/CN=resumed.example", "-days", "1"], check=True, stderr=subprocess.DEVNULL)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(["openssl", "s_server", "-accept", str(port), "-key", key, "-cert", cert, "-quiet", "-www"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            time.sleep(0.1)
            done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}", "-servername",
                                   "resumed.example", "-sess_out", kept, "-ign_eof"], input=b"GET / HTTP/1.0\r\n\r\n",
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)
            if done.returncode == 0 and os.path.exists(kept):
                return kept
    finally:
        server.kill()
        server.wait()
    raise SystemExit("no session")


catch("curl", run("curl", "-sk", "--max-time", "3", "--resolve", "curl.example:PORT:127.0.0.1", "https://curl.example:PORT/"))
catch("openssl-alpn", openssl("-servername", "openssl.example", "-alpn", "h2,http/1.1,acme-tls/1,a,b,c"))
catch("openssl-tls12", openssl("-tls1_2", "-servername", "Old.Example"))
catch("openssl-no-name", openssl("-noservername"))
catch("openssl-small-records", openssl("-servername", "records.example", "-split_send_frag", "64", "-max_send_frag", "512"))
catch("python", python("python.example"))
catch("python-address", python("127.0.0.1"))
with tempfile.TemporaryDirectory() as folder:
    for version in ("tls1_2", "tls1_3"):
        catch(f"openssl-resumed-{version}", openssl(f"-{version}", "-servername", "resumed.example", "-sess_in",
                                                    session(folder, version)))
catch("node", run("node", "-e", "require('tls').connect({host:'127.0.0.1',port:PORT,servername:'node.example',"
                  "ALPNProtocols:['h2'],rejectUnauthorized:false}).on('error',()=>0);setTimeout(()=>process.exit(),2000)"))
for which in ("chrome", "firefox", "safari", "edge"):
    catch(which, browser(which))
