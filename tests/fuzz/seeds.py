"""The first files of the corpus: what real clients send, caught from them. `python -m tests.fuzz.seeds`

dig and getent are run against a socket that records and never answers, so that they say all they can say.
"""

import hashlib
import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from tests.fuzz.fuzz_dns import CORPUS
from tests.lab.need import need

HOST = "127.0.53.77"
DIG = (
    "web.local A",
    "web.local AAAA +edns +cookie",
    "WeB.LoCaL ANY +noedns",
    "_web._tcp.local SRV +bufsize=4096 +dnssec",
    "_many._tcp.local SRV",
    "local SOA +subnet=192.0.2.0/24",
    "local AXFR +notcp",
    "local IXFR=7 +notcp",
    "x.web.local TXT +nsid",
    "web.local A +edns=1 +noednsnegotiation",
    "web.local CH TXT",
    "-x 172.17.42.1",
    "-x fd00::42",
    "example.org MX +padding=128 +expire",
    "web.local A +ednsopt=65001:c0ffee +adflag +cdflag",
    "web.local A +header-only",
    "web.local A +opcode=notify",
    "web.local A +opcode=update",
    "web.local A -y hmac-sha256:key:c2VjcmV0",
)


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((HOST, 53))
        udp.settimeout(0.2)
        done = threading.Event()
        recorder = threading.Thread(target=_record, args=(udp, done))
        recorder.start()
        for line in DIG:
            command = [need("dig"), f"@{HOST}", "+tries=1", "+time=1", *line.split()]
            subprocess.run(command, capture_output=True, check=False)
        _ask_by_libc()
        done.set()
        recorder.join()
    # What relays and hosts answer, as a reply from an upstream is read by hand too.
    for name, message in REPLIES.items():
        _keep(name, message)


REPLIES = {
    "reply-a": b"\0\7\x81\x80\0\1\0\1\0\0\0\0\7example\3org\0\0\1\0\1"
    b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1",
    "reply-truncated": b"\0\7\x83\x80\0\1\0\0\0\0\0\0\7example\3org\0\0\1\0\1",
    "reply-refused-bare": b"\0\7\x81\x05\0\0\0\0\0\0\0\0",
    "pointer-to-itself": b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    "address-with-zone": b"\0\7\1\0\0\1\0\0\0\0\0\0\4--%a\3web\5local\0\0\1\0\1",
    "two-questions": b"\0\1\1\0\0\2\0\0\0\0\0\0\3web\5local\0\0\1\0\1\3web\5local\0\0\x1c\0\1",
}


def _ask_by_libc() -> None:
    with tempfile.TemporaryDirectory() as directory:
        resolv_conf = Path(directory) / "resolv.conf"
        resolv_conf.write_text(f"nameserver {HOST}\noptions timeout:1 attempts:1\n")
        mount = f"mount --bind {resolv_conf} /etc/resolv.conf"
        lookup = "getent -s hosts:dns ahosts web.local; busybox nslookup web.local"
        subprocess.run(["unshare", "--mount", "sh", "-c", f"{mount} && ({lookup})"], check=False)


def _record(udp: socket.socket, done: threading.Event) -> None:
    seen = 0
    while not done.is_set():
        try:
            message = udp.recv(4096)
        except TimeoutError:
            continue
        # The id is random, and is no way through the code.
        message = b"\0\7" + message[2:]
        _keep(f"seed-{hashlib.sha1(message).hexdigest()[:12]}", message)
        seen += 1
    print(f"{seen} messages recorded by process {os.getpid()}")


def _keep(name: str, message: bytes) -> None:
    (CORPUS / name).write_bytes(message)


if __name__ == "__main__":
    main()
