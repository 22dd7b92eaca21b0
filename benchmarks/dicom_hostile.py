"""Attack a real server process with mutated files, mutated PDUs, bombs and silent clients.

They are sent to the DICOM port and STOW-RS; bombs are also pulled from a DICOMweb server and retrieved with WADO-RS.

Afterwards the process must be alive and ready, must have no more threads and open files than before, and not much more memory;
its inbox must be empty, its audit log must verify, and an image of a well-behaved peer must be stored, predicted and answered.
The exit status is 1 if not. Inputs are generated from a seed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import json
import random
import shlex
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pydicom

from pneumoscope import __version__
from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.i18n import NOTICE
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.dicom.header import read_header
from pneumoscope.service.storage.database import open_database

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dicom_bombs import EXPLICIT, header_bombs, image_bomb, implicit_element
from dicom_nodes import NODE, SENDER, Pacs, Service, association, make_instances, send, send_until_acknowledged
from hostile import mutate

MAX_GROWTH_MB = 100
MAX_HEADER_SECONDS = 2
SLOW_CLIENTS = 60
REQUEST_SECONDS, PULL_SECONDS = 120, 600
BOUNDARY = "b"
IMAGE_BOMBS, BOMB_ITEMS = 2, 400_000  # can still be decoded within 30 s of processor time
PULLED_STUDY, PULLED_SERIES = "1.2.1", "1.2.2"


# --- inputs ---------------------------------------------------------------------------------------------------------


def header_seconds(content: bytes) -> float:
    """Return the CPU time of parsing the header of a file, seconds."""
    start = time.process_time()
    with contextlib.suppress(UnreadableImageError):
        read_header(content)
    return time.process_time() - start


def hostile_values() -> list[bytes]:
    """Return files of images with values that could break what is written from them: paths, JSON, wildcards, long names."""
    changes: list[dict[str, Any]] = [
        {"StudyInstanceUID": "../../etc/passwd"}, {"StudyInstanceUID": "1.2/../3", "SeriesInstanceUID": "*"},
        {"StudyInstanceUID": "", "SeriesInstanceUID": ""}, {"StudyInstanceUID": "1" * 64},
        {"PatientName": '"}],"x":{"'}, {"PatientName": "A" * 60_000}, {"PatientName": "^" * 200}, {"PatientName": "=" * 9},
        {"PatientName": "\x00\x01\x1b[31m"}, {"PatientName": "%n%s${jndi:ldap://x}<script>alert(1)</script>"},
        {"PatientID": "*"}, {"PatientID": "?"}, {"PatientID": "a\\b\\c"}, {"PatientID": "X" * 5000},
        {"AccessionNumber": "'; DROP TABLE outbox; --"}, {"AccessionNumber": "*\\*"}, {"StudyID": "\ufffd" * 16},
        {"StudyDate": "99999999"}, {"StudyTime": "999999"}, {"PatientBirthDate": "00000000"}, {"PatientSex": "<"},
        {"StudyDescription": "\r\nSet-Cookie: x"}, {"PatientComments": "c" * 50_000}, {"StationName": "s" * 3000},
        {"ReferringPhysicianName": "A=B=C=D=E^^^^^^^^^"}, {"Laterality": "LR\\LR"}, {"PatientOrientation": ["A"] * 100},
        {"SpecificCharacterSet": "nonsense"}, {"SpecificCharacterSet": ["ISO 2022 IR 87"] * 100}, {"Manufacturer": "m" * 9000},
    ]  # fmt: skip
    instances = make_instances(len(changes), seed=77)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says that these values are invalid
        for instance, change in zip(instances, changes, strict=True):
            instance.SpecificCharacterSet = "ISO_IR 192"
            for name, value in change.items():
                setattr(instance, name, value)
        return [encode(each) for each in instances]


def encode(instance: pydicom.Dataset) -> bytes:
    """Return the file of an instance."""
    file = io.BytesIO()
    instance.save_as(file, enforce_file_format=True)
    return file.getvalue()


def associate_request(rng: random.Random) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU (PS3.8 9.3.2) for one presentation context."""

    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(value)) + value

    context = struct.pack(">BBBB", 1, 0, 0, 0) + item(0x30, b"1.2.840.10008.5.1.4.1.1.1.1") + item(0x40, EXPLICIT[:-1])
    user = item(0x51, struct.pack(">I", rng.choice((0, 16384, 0xFFFFFFFF)))) + item(0x52, b"1.2.3")
    body = (
        struct.pack(">HH", 1, 0) + NODE.encode().ljust(16) + SENDER.encode().ljust(16) + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    )  # fmt: skip
    return struct.pack(">BBI", 1, 0, len(body)) + body


def store_request(content: bytes) -> bytes:
    """Return the P-DATA-TF PDUs (PS3.8 9.3.5) of a C-STORE request with a data set."""
    command = (
        implicit_element(0x00000002, b"1.2.840.10008.5.1.4.1.1.1.1\0") + implicit_element(0x00000100, struct.pack("<H", 1))
        + implicit_element(0x00000110, struct.pack("<H", 1)) + implicit_element(0x00000700, struct.pack("<H", 0))
        + implicit_element(0x00000800, struct.pack("<H", 0)) + implicit_element(0x00001000, b"1.2.3.4 ")
    )  # fmt: skip
    command = implicit_element(0x00000000, struct.pack("<I", len(command))) + command

    def pdu(fragment: bytes, control: int) -> bytes:
        return struct.pack(">BBIIBB", 4, 0, len(fragment) + 6, len(fragment) + 2, 1, control) + fragment

    return pdu(command, 3) + pdu(content, 2)


# --- attacks --------------------------------------------------------------------------------------------------------


def attack_stow(service: Service, contents: Iterator[bytes]) -> Counter[str]:
    """Send mutated files to STOW-RS, and return the number of responses by status."""
    statuses: Counter[str] = Counter()
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for content in contents:
            body = (
                f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
                + content
                + f"\r\n--{BOUNDARY}--".encode()
            )
            try:
                statuses[str(client.post("/dicom-web/studies", content=body, headers=headers).status_code)] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
    return statuses


@contextlib.contextmanager
def dicomweb_server(contents: Sequence[bytes]) -> Iterator[str]:
    """Serve files as the instances of a study, whatever UIDs they state, and yield the address of the server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = path.rpartition("/")[2]
            found = {
                "studies": [{"0020000D": PULLED_STUDY}],
                "series": [{"0020000E": PULLED_SERIES, "00080060": "DX"}],
                "instances": [{"00080018": f"1.2.3.{number}"} for number in range(len(contents))],
            }.get(name)
            if found is None:
                content = contents[int(name.rpartition(".")[2])]
                head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n"
                body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
                content_type = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
            else:
                offset = int(dict(parse_qsl(query)).get("offset", 0))
                vrs = {"00080060": "CS"}
                page = [
                    {tag: {"vr": vrs.get(tag, "UI"), "Value": [value]} for tag, value in each.items()}
                    for each in found[offset:]
                ]
                body, content_type = json.dumps(page).encode(), "application/dicom+json"
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(REQUEST_SECONDS)


def attack_pull(service: Service, contents: Sequence[bytes]) -> Counter[str]:
    """Let `pneumoscope pull` retrieve files from a DICOMweb server into the service, and return the number by outcome."""
    with dicomweb_server(contents) as url:
        configuration = service.folder / "pull.toml"
        configuration.write_text(f'[[sources]]\nname = "archive"\nurl = "{url}"\n')
        pull = [
            sys.executable, "-m", "pneumoscope", "pull", "--dicom-config", str(configuration), "--from", "archive",
            "--study", PULLED_STUDY, "--service", service.url, "--json",
        ]  # fmt: skip
        try:
            ran = subprocess.run(pull, capture_output=True, text=True, check=False, timeout=PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return Counter({f"not finished after {PULL_SECONDS:g} s": 1})
    try:
        report = json.loads(ran.stdout)
    except json.JSONDecodeError:
        return Counter({f"exit status {ran.returncode}: {ran.stderr.strip()[-200:]}": 1})
    return Counter({"stored": report["instances"], "failed": report["failed_instances"]})


def attack_retrieve(service: Service, contents: Sequence[bytes]) -> Counter[str]:
    """Retrieve the metadata and the frame of stored images with WADO-RS, and return the number of responses by status.

    Their addresses have the UIDs that the service gives them in a search.
    """
    statuses: Counter[str] = Counter()
    with httpx.Client(base_url=f"{service.url}/dicom-web", timeout=REQUEST_SECONDS) as client:
        for content in contents:
            study = read_header(content).StudyInstanceUID
            found = client.get("/instances", params={"StudyInstanceUID": study, "Modality": "DX"}).json()
            for each in found:
                series, instance = (each[tag]["Value"][0] for tag in ("0020000E", "00080018"))
                for rest in ("metadata", "frames/1", "rendered"):
                    path = f"/studies/{study}/series/{series}/instances/{instance}/{rest}"
                    try:
                        statuses[str(client.get(path).status_code)] += 1
                    except httpx.HTTPError as error:
                        statuses[type(error).__name__] += 1
    return statuses


def attack_store(service: Service, contents: Iterator[bytes]) -> Counter[str]:
    """Send mutated data sets by C-STORE on associations that pynetdicom negotiates, and return the number by status."""
    statuses: Counter[str] = Counter()
    rng = random.Random(0)
    for content in contents:
        with socket.create_connection(("127.0.0.1", service.port), 30) as bare:
            bare.sendall(associate_request(rng))
            accepted = _read_pdu(bare)
            if accepted[:1] != b"\x02":
                statuses["association refused"] += 1
                continue
            with contextlib.suppress(OSError):
                bare.sendall(store_request(content[132:]))
            answer = _read_pdu(bare)
            position = answer.find(struct.pack("<HHI", 0, 0x900, 2))
            status = f"0x{struct.unpack_from('<H', answer, position + 8)[0]:04x}" if position >= 0 else "aborted"
            statuses[status] += 1
            with contextlib.suppress(OSError):
                bare.sendall(struct.pack(">BBII", 5, 0, 4, 0))
                _read_pdu(bare)
    return statuses


def attack_pdus(service: Service, count: int, seed: int, content: bytes) -> Counter[str]:
    """Send mutated PDUs on bare connections, and return the number of connections by the first byte that was answered."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed} pdu {number}")
        data = mutate(associate_request(rng), rng) if rng.random() < 0.5 else associate_request(rng)
        data += mutate(store_request(content[132:2000]), rng)
        with socket.create_connection(("127.0.0.1", service.port), 30) as bare:
            with contextlib.suppress(OSError):
                bare.sendall(data)
                bare.shutdown(socket.SHUT_WR)
            answer = _read_pdu(bare)
            kind = answer[0] if answer else 0
            outcomes[{0: "closed", 2: "accepted", 3: "rejected", 7: "aborted"}.get(kind, f"PDU {kind}")] += 1
    return outcomes


def _read_pdu(bare: socket.socket) -> bytes:
    """Return the next PDU; empty if the connection ends."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < 6 or len(data) < 6 + struct.unpack_from(">I", data, 2)[0]:
            part = bare.recv(65536)
            if not part:
                break
            data += part
    return data


def attack_limits(service: Service) -> dict[str, str]:
    """Send what is refused at once, and what is silent or slow; return what came of it."""
    outcomes = {}
    with association(service.port, called="ANOTHER") as opened:
        outcomes["wrong called AE title"] = "rejected" if opened.is_rejected else "accepted"
    with association(service.port, title="STRANGER") as opened:
        outcomes["unknown calling AE title"] = "rejected" if opened.is_rejected else "accepted"
    slow = [socket.create_connection(("127.0.0.1", service.port), 30) for _ in range(SLOW_CLIENTS)]
    for each in slow:
        with contextlib.suppress(OSError):
            each.sendall(b"\x01\x00\x00\x00\x01")  # a PDU that never ends
    open_slow = sum(_is_open(each) for each in slow)
    outcomes[f"{SLOW_CLIENTS} connections with an unfinished PDU"] = f"{open_slow} open, {threads(service)} threads"
    deadline = time.monotonic() + 60
    answered = None
    while answered != 0x0000 and time.monotonic() < deadline:
        (answered,) = send(service.port, make_instances(1, seed=900))
    outcomes["a peer meanwhile"] = "served" if answered == 0x0000 else "not served within 60 s"
    for each in slow:
        each.close()
    return outcomes


def _is_open(bare: socket.socket) -> bool:
    bare.settimeout(0.01)
    try:
        return bare.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def attack_tls(folder: Path, model: Path | None) -> dict[str, str]:
    """Start a node with TLS, and connect in plain text, with a certificate of another authority, and without one."""
    for name in ("ours", "theirs"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    service = Service(folder / "tls", {}, [], model=model)
    file = service.folder / "dicom.toml"
    lines = [f'tls_{name} = "{folder / path}"' for name, path in (
        ("certificate", "ours.pem"), ("key", "ours.key"), ("client_ca", "ours.pem")
    )]  # fmt: skip
    file.write_text(file.read_text().replace("[node]\n", "[node]\n" + "\n".join(lines) + "\n"))
    service.start()
    outcomes = {}
    try:
        with association(service.port) as opened:
            outcomes["plain text on the TLS port"] = "accepted" if opened.is_established else "closed"
        for name, certificate in (("wrong", "theirs"), ("no", "")):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if certificate:
                context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
            outcome = "closed"
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", service.port), 30) as bare,
                context.wrap_socket(bare) as secured,
            ):
                secured.sendall(associate_request(random.Random(0)))
                outcome = "accepted" if secured.recv(1) == b"\x02" else "closed"
            outcomes[f"{name} certificate"] = outcome
    finally:
        service.kill()
    return outcomes


# --- the process ----------------------------------------------------------------------------------------------------


def memory(service: Service) -> float:
    """Return the resident memory of the process, MB."""
    assert service.process
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def threads(service: Service) -> int:
    """Return the number of threads of the process."""
    assert service.process
    return len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))


def open_files(service: Service) -> int:
    """Return the number of open files of the process."""
    assert service.process
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def mutated(count: int, seed: int) -> Iterator[bytes]:
    """Yield mutated DICOM files, the same for the same seed."""
    valid = [encode(each) for each in make_instances(16, seed=1)]
    for number in range(count):
        rng = random.Random(f"{seed} file {number}")
        yield mutate(rng.choice(valid), rng)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition, and return whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def attack(folder: Path, model: Path | None, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """Attack a service, and return what came of it; a log with a problem is moved to `out`."""
    pacs = Pacs(folder / "pacs")
    pacs.start()
    service = Service(folder / "service", {"PACS": pacs.port}, ["PACS"], model=model)
    service.start()
    document: dict[str, Any] = {"problems": []}
    problems: list[str] = document["problems"]
    try:
        send_until_acknowledged(service.port, make_instances(20, seed=500))
        list(attack_stow(service, mutated(100, seed + 1)))
        wait_until(lambda: not _waiting(service), 120)
        before = memory(service), threads(service), open_files(service)
        start = time.monotonic()
        third = max(1, inputs // 3)
        document["STOW-RS"] = attack_stow(service, mutated(third, seed))
        document["C-STORE"] = attack_store(service, mutated(third, seed + 2))
        content = encode(make_instances(1, seed=3)[0])
        document["PDUs"] = attack_pdus(service, inputs - 2 * third, seed, content)
        document["hostile values"] = attack_store(service, iter(hostile_values()))
        document["header bombs by STOW-RS"] = attack_stow(service, iter(header_bombs().values()))
        bombs = [image_bomb(BOMB_ITEMS, level=800 + number) for number in range(IMAGE_BOMBS)]
        pulled = [*bombs, *header_bombs().values()]
        document["bombs by pull"] = attack_pull(service, pulled)
        wait_until(lambda: not _waiting(service), 600)  # a search finds images that are predicted
        document["stored bombs by WADO-RS"] = attack_retrieve(service, bombs)
        document["limits"] = attack_limits(service)
        document["seconds"] = time.monotonic() - start
        document["header seconds"] = {name: header_seconds(bomb) for name, bomb in header_bombs().items()}
        if not wait_until(lambda: not _waiting(service), 600):
            problems.append("instances or results wait")
        last = make_instances(1, seed=901)
        send_until_acknowledged(service.port, last)
        if not wait_until(lambda: not _waiting(service), 120):
            problems.append("the image of a well-behaved peer is not answered")
        wait_until(lambda: threads(service) <= before[1], 60)
        after = memory(service), threads(service), open_files(service)
        document["before and after"] = {
            name: values for name, *values in zip(("memory, MB", "threads", "open files"), before, after, strict=True)
        }
        if after[0] > before[0] + MAX_GROWTH_MB:
            problems.append("memory grew")
        if after[1] > before[1] + 2 or after[2] > before[2] + 5:
            problems.append("threads or open files are left")
        if max(document["header seconds"].values()) > MAX_HEADER_SECONDS:
            problems.append("a header takes long to parse")
        if httpx.get(f"{service.url}/readyz", timeout=30).status_code != 200:
            problems.append("the service is not ready")
        document["predictions"] = service.count("/v1/predictions")
        document["unreadable files"] = service.count("/v1/unreadable")
        if status := service.stop():
            problems.append(f"exit status {status}")
    finally:
        service.kill()
        pacs.stop()
    files = [path for path in (service.data / "inbox").rglob("*") if path.is_file()]
    document["files left in the inbox"] = len(files)
    if files:
        problems.append("files are left in the inbox")
    # The log names AE titles, which are not data of a patient, escaped and of 16 characters at most.
    log = "\n".join(line for line in service.log().splitlines() if "Rejected a DICOM association" not in line)
    if found := next((each for each in ("Traceback", "alert(1)", "etc/passwd", "Phantom") if each in log), ""):
        problems.append(f"the log contains {found!r}")
        write_atomically(out / "log.txt", log)
    engine = open_database(service.data)
    document["audit log rows"] = verify(engine).rows
    engine.dispose()
    if {"aborted", "association refused"} & {*document["C-STORE"], *document["hostile values"]}:
        problems.append("an instance was not answered")
    if any(not status.isdigit() or status.startswith("5") for status in document["STOW-RS"]):
        problems.append("STOW-RS answered with a server error")
    if document["bombs by pull"]["stored"] + document["bombs by pull"]["failed"] != len(pulled):
        problems.append("a pull ended early")
    if not document["stored bombs by WADO-RS"].get("200"):
        problems.append("no stored bomb is retrieved")
    if not {*document["stored bombs by WADO-RS"]} <= {"200", "404", "422"}:
        problems.append("WADO-RS did not answer, or with a server error")
    document["TLS"] = attack_tls(folder, model)
    if "accepted" in {*document["TLS"].values(), *document["limits"].values()}:
        problems.append("an untrusted client was accepted")
    if document["limits"]["a peer meanwhile"] != "served":
        problems.append("slow clients keep a peer out")
    return document


def _waiting(service: Service) -> int:
    engine = open_database(service.data)
    try:
        with engine.connect() as connection:
            query = (
                "SELECT (SELECT count(*) FROM received_instances WHERE state = 'waiting')"
                " + (SELECT count(*) FROM outbox WHERE state = 'waiting' AND attempts = 0)"
            )
            return int(connection.exec_driver_sql(query).scalar_one())
    finally:
        engine.dispose()


def to_markdown(document: dict[str, Any], inputs: int, seed: int, command: str) -> str:
    """Return the results as Markdown."""
    lines = [
        f"{inputs:,} mutated DICOM files and PDUs, header bombs, hostile values, silent and untrusted clients, sent to the DICOM"
        f" port and STOW-RS of `pneumoscope serve`, pulled into it"
        f" and retrieved from it ({__version__}), seed {seed}, in {document['seconds']:.0f} s. Result:"
        f" {'; '.join(document['problems']) or 'no crash, no leak, nothing left'}.\n",
        "| attack | outcomes |\n| --- | --- |",
    ]
    counted = (
        "STOW-RS",
        "C-STORE",
        "PDUs",
        "hostile values",
        "header bombs by STOW-RS",
        "bombs by pull",
        "stored bombs by WADO-RS",
    )
    for name in counted:
        lines.append(f"| {name} | {', '.join(f'{key}: {count:,}' for key, count in sorted(document[name].items()))} |")
    for name in ("limits", "TLS"):
        lines += [f"| {key} | {value} |" for key, value in document[name].items()]
    lines.append("\n| process | before | after |\n| --- | --- | --- |")
    lines += [f"| {key} | {a:.0f} | {b:.0f} |" for key, (a, b) in document["before and after"].items()]
    lines.append("\n| header of 4 MiB | CPU time of its parse, s |\n| --- | --- |")
    lines += [f"| {key} | {value:.2f} |" for key, value in document["header seconds"].items()]
    lines.append(
        f"\n{document['predictions']:,} predictions and {document['unreadable files']:,} records of unreadable files are stored,"
        f" {document['files left in the inbox']} files are left in the inbox, and the audit log of {document['audit log rows']:,}"
        " rows verifies."
    )
    return "\n".join([*lines, f"\n`{command}`\n", f"{NOTICE}\n"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print and write; return 1 if the service did not withstand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="folder of a bundle; default: the included model")
    parser.add_argument("--out", type=Path, required=True, help="folder for hostile.md and hostile.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        document = attack(Path(folder), options.model, options.inputs, options.seed, options.out)
    command = shlex.join(["python", "benchmarks/dicom_hostile.py", *(arguments or sys.argv[1:])])
    text = to_markdown(document, options.inputs, options.seed, command)
    print(text)
    write_atomically(options.out / "hostile.md", text)
    write_atomically(options.out / "hostile.json", json.dumps(document | {"command": command}, indent=2) + "\n")
    return 1 if document["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
