"""Behind the nginx of docs/how-to/operate.md, word for word but for ports and certificate, a person signs in and sends images."""

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from tests.processes import free_port, started
from tests.service.conftest import TOKEN, insert_token_of_service, png, served

NAME = "images.clinic.example"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "operate.md"
CANARY = "DOE^JANE"


def block(port, certificate, behind):
    """The server as the page has it, so that what is written there is what is tried."""
    text = "server {\n" + PAGE.read_text("utf-8").split("```text\nserver {\n")[1].split("```")[0]
    for ours, here in [
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/images.pem", f"{certificate}/images.pem"),
        ("/etc/ssl/images.key", f"{certificate}/images.key"),
        ("http://127.0.0.1:8000;", f"http://127.0.0.1:{behind};"),
    ]:
        assert ours in text
        text = text.replace(ours, here)
    return text


@pytest.fixture
def proxied(bundle, tmp_path):
    """A client that speaks HTTPS with the proxy, one that speaks with the service itself, and the proxy's folder."""
    nginx, openssl = (
        shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"),
        shutil.which("openssl"),
    )
    if not nginx or not openssl:
        pytest.skip("nginx and openssl are not both installed (Debian's packages nginx-light and openssl)")
    folder, port = tmp_path / "nginx", free_port()
    insert_token_of_service(tmp_path, "ward-3")
    folder.mkdir()
    made = f"req -x509 -newkey rsa:2048 -nodes -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}".split()
    files = ["-keyout", folder / "images.key", "-out", folder / "images.pem"]
    subprocess.run([openssl, *made, *files], check=True, capture_output=True, timeout=60)
    with served(bundle, tmp_path, "--public-name", NAME) as (_, direct):
        kept = " ".join(
            f"{what}_temp_path {folder}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log info; events {{}}\n"
            f"http {{ {kept}\n{block(port, folder, direct.base_url.port)} }}\n"
        )
        trusted = ssl.create_default_context(cafile=folder / "images.pem")
        with (
            started(
                [nginx, "-p", folder, "-c", folder / "nginx.conf"], deadline=300, stderr=subprocess.DEVNULL
            ) as proxy,
            httpx.Client(transport=Named(verify=trusted), base_url=f"https://{NAME}:{port}", timeout=30) as client,
        ):
            try:
                until = time.monotonic() + 60
                while time.monotonic() < until and not reached(port):
                    time.sleep(0.05)
                yield client, direct, folder
                proxy.terminate()
                proxy.wait(60)
            finally:
                proxy.kill()


class Named(httpx.HTTPTransport):
    """Finds the name on this machine, as a clinic's own name server would."""

    def handle_request(self, request):
        there = request.url.copy_with(host="127.0.0.1")
        extensions = {**request.extensions, "sni_hostname": NAME}
        sent = httpx.Request(
            request.method, there, headers=request.headers, stream=request.stream, extensions=extensions
        )
        return super().handle_request(sent)


def reached(port):
    with socket.socket() as probe:
        probe.settimeout(60)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_person_signs_in_through_the_proxy_with_a_cookie_that_travels_by_https_alone(proxied):
    client, direct, folder = proxied
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?next=%2F")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    own = {"Origin": str(client.base_url).rstrip("/")}

    assert (
        client.post("/sign-in", data={"token": TOKEN}, headers={"Origin": "https://elsewhere.example"}).status_code
        == 403
    )
    answer = client.post("/sign-in", data={"token": TOKEN}, headers=own)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    for said in ("Secure", "HttpOnly", "SameSite=strict"):
        assert said in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200

    large = png(size=1500) + bytes(3_000_000)  # nginx takes 1 MB where nothing else is said
    sending = {"content": large, "headers": {"Content-Type": "image/png", **own}}
    (found,) = client.post("/v1/predictions", **sending).json()["predictions"]
    assert found["image_bytes"] == len(large)
    sending["headers"]["Origin"] = "https://elsewhere.example"
    assert client.post("/v1/predictions", **sending).status_code == 403
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(direct.base_url.join(f"/v1/predictions/{found['id']}"), headers=bearer).json()["id"] == found["id"]

    client.post(
        "/v1/predictions", params={"name": CANARY}, content=b"no image", headers={"Content-Type": "image/png", **own}
    )
    for path in ("/metrics", "/healthz", "/readyz"):
        assert client.get(path).status_code == 404
        assert direct.get(path).status_code == 200
    assert CANARY not in "".join(file.read_text() for file in folder.glob("*.log"))


def test_live_list_comes_through_the_proxy_without_delay(proxied):
    client, _, _ = proxied
    own = {"Origin": str(client.base_url).rstrip("/")}
    client.post("/sign-in", data={"token": TOKEN}, headers=own)
    with client.stream("GET", "/events", timeout=60) as response:
        assert (response.status_code, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        lines = (line for line in response.iter_lines() if line)
        assert [next(lines), next(lines)] == [": open", "retry: 3000"]  # although nothing has happened
        started = time.monotonic()
        client.post("/v1/predictions", content=png(), headers={"Content-Type": "image/png", **own})
        assert next(lines) == 'data: "changed"'
        assert time.monotonic() - started < 30  # what nginx keeps back would not come at all


def received(proxied, *parts):
    """Send bytes to the proxy and return its response, and the seconds until it closed the connection."""
    client, _, folder = proxied
    context = ssl.create_default_context(cafile=folder / "images.pem")
    start, answer = time.monotonic(), b""
    with (
        socket.create_connection(("127.0.0.1", client.base_url.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.settimeout(60)
        for part in parts:
            connection.sendall(part)
        while chunk := connection.recv(1000):
            answer += chunk
        return answer, time.monotonic() - start


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/predictions HT",
        f"POST /v1/predictions HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: image/png\r\nContent-Length: 9\r\n\r\n1",
    ],
    ids=["head", "body"],
)
def test_slow_clients_are_timed_out_by_the_proxy(proxied, sent):
    answer, seconds = received(proxied, sent if isinstance(sent, bytes) else sent.encode())
    assert b" 200 " not in answer
    assert b" 201 " not in answer
    assert seconds > 8


def test_early_response_to_a_large_upload_comes_through_the_proxy(proxied):
    client, _, _ = proxied
    for _ in range(5):
        # On a new connection each time: nginx may close one whose body it has not read while the client sends the next request.
        wrong = {"Authorization": f"Bearer {TOKEN}x", "Content-Type": "image/png", "Connection": "close"}
        assert client.post("/v1/predictions", content=bytes(8 * 2**20), headers=wrong).status_code == 401
