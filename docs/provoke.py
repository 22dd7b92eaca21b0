"""Provokes every public error once, so that the messages on its page are messages of the program and not of a writer."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image

from pneumoscope.bundle.card import (
    FORMAT,
    LABELS,
    Calibration,
    Card,
    OperatingPoint,
    Parity,
    Proportion,
    read_bundle,
    short_hash,
)
from pneumoscope.cli import _told
from pneumoscope.cli.predict import command as predict
from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.core.files import write_atomically
from pneumoscope.data.download import Limits, unpack
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LabelledImage, Manifest
from pneumoscope.evaluation.selection import refuse_chosen_thresholds
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import phantom
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.imaging.sandbox import DecodePool
from pneumoscope.imaging.sandbox import Limits as DecodeLimits
from pneumoscope.inference.model import load_model
from pneumoscope.models.factory import create_model
from pneumoscope.models.weights import read_tensors
from pneumoscope.runs.recipe import read_recipe
from pneumoscope.runs.record import read_run
from pneumoscope.service.app import Settings, create_app
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.statistics.roc import auroc
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import Batch
from pneumoscope.training.parity import check_parity
from pneumoscope.training.train import split_as_asked

__all__ = ["examples"]

_NETWORK = "mobilenetv3_small_050"


def examples() -> dict[str, str]:
    """What the command line would print of each error: {name of the error: message}.

    Raises:
        RuntimeError: a provocation raised nothing, or another error than its own.
    """
    return {kind: _message(kind, provoke) for kind, provoke in _PROVOCATIONS.items()}


def _message(kind: str, provoke: Callable[[], object]) -> str:
    with _empty_folder():
        try:
            provoke()
        except PneumoscopeError as error:
            if type(error).__name__ == kind:
                # What a caller names by a relative path is sometimes told with the whole of it.
                return str(error).replace(f"{Path.cwd()}/", "")
            raise RuntimeError(f"{kind} was to be provoked, not {error!r}") from error
        except ZeroDivisionError as error:
            return str(_told(error))
    raise RuntimeError(f"{kind} was not raised")


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _png() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    return file.getvalue()


IMAGE = _png()


def _fault_of_ours() -> None:
    _ = 1 / 0


def _usage() -> None:
    Path("images").mkdir()
    Path("images/thorax.png").touch()
    phantom(Path("images"))


def _missing_extra() -> None:
    raise _told(ModuleNotFoundError("No module named 'torch'", name="torch"))


def _unreadable() -> None:
    file = Path("thorax.jpeg")
    Image.linear_gradient("L").save(file)
    file.write_bytes(file.read_bytes()[:1000])
    decode(file)


def _layout() -> None:
    for name in ("covid", "healthy"):
        Path("scans", name).mkdir(parents=True)
        Path("scans", name, "1.png").touch()
    load_manifest(Path("scans"))


def _manifest() -> None:
    Path("images.csv").write_text("path,label\na.png,NORMAL\nb.png,SICK\n")
    load_manifest(Path("images.csv"))


def _images(*rows: tuple[str, str, str]) -> Manifest:
    """Images of (label, patient, split), split by hand."""
    images = [
        LabelledImage(f"{n}.png", label, "", patient, split, f"{n:064}")
        for n, (label, patient, split) in enumerate(rows, start=1)
    ]
    return Manifest(tuple(images), Path(), by="patient")


def _leak() -> None:
    rows = (("PNEUMONIA", "bacteria-100", "train"), ("PNEUMONIA", "bacteria-100", "test"))
    _images(*rows).check_patient_leaks("images.csv")


def _dataset() -> None:
    rows = [(label, f"{label}-{n}", "train") for label in ("NORMAL", "PNEUMONIA") for n in range(2)]
    split_as_asked(_images(*rows, ("PNEUMONIA", "p", "validation")), read_recipe("quick"), "images.csv")


def _weights() -> None:
    read_tensors(Path("model.h5"))


def _threshold() -> None:
    image = LabelledImage("1.png", "NORMAL", "", "", "validation", "ab" * 32)
    share = Proportion(value=1, low=0.2, high=1, n=1, method="wilson")
    point = OperatingPoint(
        threshold=0.7,
        rule="highest Youden index on 1 validation images",
        chosen_on="validation",
        sensitivity=share,
        specificity=share,
    )
    card = Card(
        format=FORMAT,
        labels=LABELS,
        name="quick",
        network=_NETWORK,
        parameters=1,
        version="",
        created="",
        onnx_sha256="",
        onnx_bytes=0,
        self_test_logit=0,
        preprocessing=Preprocessing(),
        calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5),
        intervals=None,
        rejection_limits=None,
        reference_distribution=None,
        age_range=None,
        operating_points={"balanced": point},
        parity=Parity(images=0, largest=0),
        recipe={},
        seed=0,
        manifest_sha256="",
        split_by="patient",
        counts={},
        seen={"validation": [short_hash(image.sha256)]},
        best_epoch=1,
        machine={},
    )
    refuse_chosen_thresholds([image], card, ["balanced"])


def _download() -> None:
    with zipfile.ZipFile("images.zip", "w") as archive:
        archive.writestr("../outside.jpeg", "x")
    unpack(Path("images.zip"), Path("images"), Limits())


def _diverged() -> None:
    network = create_model(_NETWORK, image_size=32)
    torch.nn.init.constant_(network.model.get_classifier().bias, float("nan"))
    classifier = Classifier(read_recipe("quick"), network, (1.0, 1.0), 1, on_features=False)
    batch = Batch(torch.zeros(2, 32, 32, dtype=torch.uint8), torch.tensor([0.0, 1.0]), torch.arange(2), weight=1.0)
    classifier.training_step(batch, 0)


def _parity() -> None:
    network = create_model(_NETWORK, image_size=32).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    check_parity(network, np.zeros((64, 32, 32), np.uint8), np.full(64, 0.02, np.float32))


def _storage() -> None:
    Path("results").touch()
    write_atomically(Path("results/report.html"), "")


def _partial() -> None:
    Path("thorax.png").write_bytes(IMAGE)
    Path("empty.png").touch()
    predict.main(["thorax.png", "empty.png", "--csv", "images.csv"], standalone_mode=False)


def _too_large() -> None:
    app = create_app(load_model(threads=1), PredictionRepository(None), Authenticator({}), Settings(max_images=1))
    answer = TestClient(app, base_url="http://localhost").post(
        "/v1/predictions", files=[("images", ("1.png", b"1")), ("images", ("2.png", b"2"))]
    )
    problem = answer.json()
    raise errors.TooLargeError(problem["detail"], hint=problem["hint"])


def _gone() -> None:
    repository, model = PredictionRepository(None), load_model(threads=1)
    stored, _ = repository.add(model.predict(IMAGE), IMAGE, user="local")
    repository.expire(timedelta(seconds=-1))
    repository.image(repository.get(stored.id))


def _decoded(limits: DecodeLimits, picture: Image.Image, preload: Sequence[str] = ()) -> None:
    picture.save("thorax.png")
    with DecodePool(1, limits=limits, preload=preload) as pool:
        pool.decode(Path("thorax.png"))


def _crash() -> None:
    Path("crashing_codec.py").write_text("import os\nfrom PIL import Image\nImage.open = lambda *_, **__: os.abort()\n")
    sys.path.insert(0, str(Path.cwd()))
    try:
        _decoded(DecodeLimits(), Image.linear_gradient("L"), ["crashing_codec"])
    finally:
        sys.path.pop(0)


def _busy() -> None:
    queue = InferenceQueue(load_model(threads=1), max_waiting=1, workers=1)
    queue.close()
    queue.submit([(b"image", "image.png")])


_PROVOCATIONS: dict[str, Callable[[], object]] = {
    "PneumoscopeError": _fault_of_ours,
    "UsageError": _usage,
    "UnknownNameError": lambda: read_recipe("quik"),
    "MissingExtraError": _missing_extra,
    "UnreadableImageError": _unreadable,
    "DecodeCrashedError": _crash,
    "DecodeMemoryError": lambda: _decoded(DecodeLimits(memory=2**28), Image.new("RGBA", (8000, 8000))),
    "DecodeTimeoutError": lambda: _decoded(DecodeLimits(wall_seconds=0.001), Image.new("L", (4000, 4000))),
    "LayoutError": _layout,
    "ManifestError": _manifest,
    "PatientLeakError": _leak,
    "DatasetError": _dataset,
    "RecipeError": lambda: read_recipe("quick", ["training.epoch=3"]),
    "WeightsError": _weights,
    "BundleError": lambda: read_bundle(Path("bundle")),
    "RunError": lambda: read_run(Path("runs/quick")),
    "ThresholdError": _threshold,
    "DownloadError": _download,
    "UndefinedMetricError": lambda: auroc([0.2, 0.9], [True, True]),
    "DivergedError": _diverged,
    "StorageError": _storage,
    "ParityError": _parity,
    "PartialFailureError": _partial,
    "AuthenticationError": lambda: Authenticator({"me": "0123456789abcdef"}).authenticate("0123456789abcdee"),
    "TooLargeError": _too_large,
    "GoneError": _gone,
    "BusyError": _busy,
    "AuditLogError": lambda: verify(PredictionRepository(None).engine, expected="ab" * 32),
}
