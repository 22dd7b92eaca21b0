"""Raise every public error once, so that the error reference shows messages of the program, not of its authors.

Most are raised by a command line. Functions are called directly only where no command line reaches the error in a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import dataclasses
import http.server
import importlib.resources
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import click
from PIL import Image

from pneumoscope.bundle.bundle_folder import CARD_FILE, DEFAULT_BUNDLE, NETWORK_FILE, read_bundle
from pneumoscope.bundle.multiclass_card import MulticlassCard, TemperatureScaling
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError

__all__ = ["examples"]

_NETWORK = "mobilenetv3_small_050"


def examples() -> dict[str, str]:
    """Return one message of each error: {class name: message and hint}.

    Raises:
        RuntimeError: An example raised no error, or another one.
    """
    return {name: _message(name, raise_error) for name, raise_error in _EXAMPLES.items()}


def _message(name: str, raise_error: Callable[[], object]) -> str:
    with _working_directory() as folder:
        try:
            raise_error()
        except PneumoscopeError as error:
            if type(error).__name__ == name:
                return str(error).replace(f"{folder}/", "")
            raise RuntimeError(f"expected {name}, got {error!r}") from error
    raise RuntimeError(f"expected {name}, but no error was raised")


@contextlib.contextmanager
def _working_directory() -> Iterator[Path]:
    """Change to an empty folder; nothing is printed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        before = os.environ.get("PNEUMOSCOPE_LEDGER")
        os.environ["PNEUMOSCOPE_LEDGER"] = str(Path(folder, "ledger.jsonl"))
        try:
            yield Path.cwd()
        finally:
            if before is None:
                del os.environ["PNEUMOSCOPE_LEDGER"]
            else:
                os.environ["PNEUMOSCOPE_LEDGER"] = before


def _run(line: str) -> None:
    """Run `pneumoscope LINE` in this process; its errors propagate."""
    cli.main(args=line.split(), prog_name="pneumoscope", standalone_mode=False)


def _run_failing(error: Exception, kind: type[PneumoscopeError]) -> None:
    """Run a command that fails with an unexpected exception, and raise what the command line prints."""

    def fail() -> None:
        raise error

    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        run_and_exit(click.Command("fail", callback=fail), [])
    result = kind.__new__(kind)
    PneumoscopeError.__init__(result, printed.getvalue().removeprefix("error: ").strip())
    raise result


def _image(path: str) -> Path:
    """Write a readable image."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").save(file)
    return file


# --- command line ----------------------------------------------------------------------------------------------------


def _usage() -> None:
    _image("images/thorax.png")
    _run("phantom images")


def _unreadable_image() -> None:
    from pneumoscope import load_model

    file = _image("thorax.jpeg")
    file.write_bytes(file.read_bytes()[:1000])
    load_model(threads=1).predict("thorax.jpeg")


def _multiclass_bundle() -> None:
    card, network = read_bundle(DEFAULT_BUNDLE)
    fields = {name: getattr(card, name) for name in MulticlassCard.__struct_fields__ if hasattr(card, name)}
    several = MulticlassCard(
        **fields
        | {
            "format": 3,
            "name": "etiology",
            "classes": ("bacteria", "normal", "virus"),
            "activation": "softmax",
            "self_test_logits": (0.0, 0.0, 0.0),
            "calibration": TemperatureScaling(temperature=1, method="none", n=0),
            "prediction_sets": None,
        }
    )
    folder = Path("etiology")
    folder.mkdir()
    (folder / NETWORK_FILE).write_bytes(network)
    (folder / CARD_FILE).write_text(several.to_json(), encoding="utf-8")
    _run("serve --model etiology --ephemeral")


def _site_profile() -> None:
    Path("site.json").write_text("{}", encoding="utf-8")
    _run(f"predict {_image('thorax.png')} --site site.json")


def _layout() -> None:
    for number in (1, 2):
        _image(f"scans/{number}.png")
    _run("split scans --out images.csv")


def _manifest() -> None:
    Path("images.csv").write_text("path,label,split\na.png,NORMAL,train\nb.png,PNEUMONIA,dev\n")
    _run("split images.csv --out split.csv")


def _split_phantoms() -> list[str]:
    """Draw images, split them, and return the lines of the manifest."""
    _run("phantom images --train 24 --test 8 --size 32")
    _run("split images --out images.csv")
    return Path("images.csv").read_text().splitlines()


def _patient_leak() -> None:
    lines = _split_phantoms()
    header = lines[0].split(",")
    patient, split = header.index("patient"), header.index("split")
    rows = [line.split(",") for line in lines]
    first = next(row for row in rows if "train" in row)
    second = next(row for row in rows if "test" in row)
    second[patient] = first[patient]
    assert second[split] != first[split]
    Path("images.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    _run("train quick --data images.csv --out runs/quick")


def _dataset() -> None:
    lines = _split_phantoms()
    Path("images.csv").write_text("\n".join(line for line in lines if ",NORMAL," not in line) + "\n")
    _run("train quick --data images.csv --out runs/quick")


def _weights() -> None:
    _run("phantom images --train 24 --test 8 --size 32")
    _run("train quick --data images --out runs/quick --set network.weights=model.h5")


def _threshold() -> None:
    """Evaluate a copy of the included model whose card lists one of the images as a validation image."""
    row = next(row for row in csv.DictReader(_split_phantoms()) if row["split"] == "validation")
    shutil.copytree(str(importlib.resources.files("pneumoscope") / "bundle" / "default"), "bundle")
    card = json.loads(Path("bundle/card.json").read_text())
    card["seen"]["validation"] = [row["sha256"][:16]]
    Path("bundle/card.json").write_text(json.dumps(card))
    _run("evaluate bundle --data images.csv --split validation --operating-point balanced")


def _download() -> None:
    """Download an archive with an unsafe path from a server in this process."""
    with zipfile.ZipFile("unsafe.zip", "w") as archive:
        archive.writestr("../outside.jpeg", "x")
    content = Path("unsafe.zip").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            _run(f"download images --from http://127.0.0.1:{server.server_port}/images.zip")
        finally:
            server.shutdown()


def _storage() -> None:
    _image("thorax.png")
    Path("results").touch()
    _run("predict thorax.png --csv results/predictions.csv")


def _partial_failure() -> None:
    _image("thorax.png")
    Path("empty.png").touch()
    _run("predict thorax.png empty.png --csv predictions.csv")


# --- functions -------------------------------------------------------------------------------------------------------


def _undefined_metric() -> None:
    from pneumoscope.statistics.roc import auroc

    auroc([0.2, 0.9], [True, True])


def _decode(image: Image.Image, preload: Sequence[str] = (), **limits: float) -> None:
    """Decode an image in a worker process with these limits."""
    from pneumoscope.imaging.sandbox.pool import DecodePool, Limits

    image.save("thorax.png")
    with DecodePool(1, limits=Limits(**limits), preload=preload) as pool:  # type: ignore[arg-type]
        pool.decode(Path("thorax.png"))


def _decode_crashed() -> None:
    Path("crashing_codec.py").write_text("import os\nfrom PIL import Image\nImage.open = lambda *_, **__: os.abort()\n")
    sys.path.insert(0, str(Path.cwd()))
    try:
        _decode(Image.linear_gradient("L"), ["crashing_codec"])
    finally:
        sys.path.pop(0)


def _diverged() -> None:
    import torch

    from pneumoscope.models.factory import create_model
    from pneumoscope.runs.recipe_files import read_recipe
    from pneumoscope.training.classifier import Classifier
    from pneumoscope.training.data_module import Batch

    network = create_model(_NETWORK, image_size=32)
    torch.nn.init.constant_(network.model.get_classifier().bias, float("nan"))
    classifier = Classifier(read_recipe("quick"), network, (1.0, 1.0), 1, on_features=False)
    batch = Batch(torch.zeros(2, 32, 32, dtype=torch.uint8), torch.tensor([0.0, 1.0]), torch.arange(2), weight=1.0)
    classifier.training_step(batch, 0)


def _parity() -> None:
    import numpy as np
    import torch

    from pneumoscope.models.factory import create_model
    from pneumoscope.training.onnx_export import check_logits

    network = create_model(_NETWORK, image_size=32).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    check_logits(network, np.zeros((64, 32, 32), np.uint8), np.full(64, 0.02, np.float32))


# --- service ---------------------------------------------------------------------------------------------------------


def _authentication() -> None:
    from starlette.requests import Request

    from pneumoscope.service.audit.access import AccessLog
    from pneumoscope.service.auth.authenticator import Authenticator
    from pneumoscope.service.auth.tokens import TokenRepository
    from pneumoscope.service.storage.database import open_database

    engine = open_database(None)
    request = Request({"type": "http", "method": "GET", "headers": [], "client": ("127.0.0.1", 1)})
    asyncio.run(Authenticator(TokenRepository(engine), AccessLog(engine)).authenticate(request, "unknown"))


def _forbidden() -> None:
    from pneumoscope.service.auth.users import AuthenticatedUser

    AuthenticatedUser("scanner-1", "sender").require_role("reader")


def _too_many_requests() -> None:
    from pneumoscope.service.auth.throttle import SignInThrottle

    throttle = SignInThrottle()
    for _ in range(9):
        throttle.record_failure("127.0.0.1")
    throttle.check("127.0.0.1")


def _too_large() -> None:
    from fastapi.testclient import TestClient

    from pneumoscope import load_model
    from pneumoscope.service.app import create_app
    from pneumoscope.service.settings import Settings
    from pneumoscope.service.storage.repository import PredictionRepository

    app = create_app(load_model(threads=1), PredictionRepository(None), Settings(max_images=1))
    response = TestClient(app, base_url="http://localhost").post(
        "/v1/predictions", files=[("images", ("1.png", b"1")), ("images", ("2.png", b"2"))]
    )
    problem = response.json()
    raise errors.TooLargeError(problem["detail"], hint=problem["hint"])


def _invalid_identity() -> None:
    from pneumoscope.core.identity import Identity
    from pneumoscope.core.identity_check import check_entered

    check_entered(Identity(patient_birth_date="2021-02-30", patient_sex="X"), today=date(2026, 1, 31))


def _pull() -> None:
    Path("dicom.toml").write_text(
        '[node]\nport = 11112\n[[peers]]\nname = "PACS"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = 1\n'
    )
    _run("pull --from PACS --accession A1 --dicom-config dicom.toml")


def _gone() -> None:
    from pneumoscope import load_model
    from pneumoscope.service.storage.repository import PredictionRepository
    from pneumoscope.service.storage.retention import Retention

    image, repository, model = _image("thorax.png").read_bytes(), PredictionRepository(None), load_model(threads=1)
    record, _ = repository.add(model.predict(image), image, user="local")
    Retention(repository).expire_images(timedelta(seconds=-1))
    repository.image(repository.get(record.id))


def _conflict() -> None:
    from pneumoscope import load_model
    from pneumoscope.service.storage.repository import PredictionRepository

    image, repository, model = _image("thorax.png").read_bytes(), PredictionRepository(None), load_model(threads=1)
    record, _ = repository.add(model.predict(image), image, user="local")
    repository.review(record.id, "pneumonia", user="a colleague")
    repository.review(record.id, "no_finding", user="local", etags=[record.etag])


def _image_of_two_patients() -> None:
    from pneumoscope import load_model
    from pneumoscope.core.identity import Identity
    from pneumoscope.service.storage.repository import PredictionRepository

    image, repository, model = _image("thorax.png").read_bytes(), PredictionRepository(None), load_model(threads=1)
    prediction = model.predict(image)
    for number in "12":
        identity = Identity(patient_id=number, sop_instance_uid=number)
        record, _ = repository.add(dataclasses.replace(prediction, identity=identity), image, user="local")
    assert record.patient_key
    repository.remove_patient(record.patient_key, user="local")


def _busy() -> None:
    from pneumoscope import load_model
    from pneumoscope.service.inference_queue import InferenceQueue

    queue = InferenceQueue(load_model(threads=1), max_waiting=1, workers=1)
    queue.close(10)
    queue.submit([(b"image", "image.png")])


def _archive() -> None:
    _run("phantom images --train 4 --test 4 --size 32")
    _run("archive score images --out archive")
    next(Path("archive").glob("predictions/*/shard-*.parquet")).unlink()
    _run("archive verify archive")


def _audit_log() -> None:
    from pneumoscope.service.audit.verification import verify
    from pneumoscope.service.storage.repository import PredictionRepository

    verify(PredictionRepository(None).engine, expected="ab" * 32)


_EXAMPLES: dict[str, Callable[[], object]] = {
    "PneumoscopeError": lambda: _run_failing(ZeroDivisionError("division by zero"), errors.PneumoscopeError),
    "UsageError": _usage,
    "UnknownNameError": lambda: _run("recipes quik"),
    "MissingExtraError": lambda: _run_failing(
        ModuleNotFoundError("No module named 'torch'", name="torch"), errors.MissingExtraError
    ),
    "UnreadableImageError": _unreadable_image,
    "DecodeCrashedError": _decode_crashed,
    "DecodeMemoryError": lambda: _decode(Image.new("RGBA", (8000, 8000)), memory=2**28),
    "DecodeTimeoutError": lambda: _decode(Image.new("L", (4000, 4000)), wall_seconds=0.001),
    "LayoutError": _layout,
    "ManifestError": _manifest,
    "PatientLeakError": _patient_leak,
    "DatasetError": _dataset,
    "RecipeError": lambda: _run("train quick --data images --out runs/quick --set training.epoch=3"),
    "WeightsError": _weights,
    "BundleError": lambda: _run(f"predict {_image('thorax.png')} --model bundle"),
    "MulticlassBundleError": _multiclass_bundle,
    "SiteProfileError": _site_profile,
    "RunError": lambda: _run("compare runs/quick --out comparison"),
    "ThresholdError": _threshold,
    "DownloadError": _download,
    "PullError": _pull,
    "UndefinedMetricError": _undefined_metric,
    "DivergedError": _diverged,
    "StorageError": _storage,
    "ParityError": _parity,
    "PartialFailureError": _partial_failure,
    "AuthenticationError": _authentication,
    "ForbiddenError": _forbidden,
    "TooManyRequestsError": _too_many_requests,
    "TooLargeError": _too_large,
    "InvalidIdentityError": _invalid_identity,
    "GoneError": _gone,
    "ConflictError": _conflict,
    "ImageOfTwoPatientsError": _image_of_two_patients,
    "BusyError": _busy,
    "ArchiveError": _archive,
    "AuditLogError": _audit_log,
}
