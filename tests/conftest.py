"""Shared fixtures: small real images, bundles and runs. The network's logit is a linear function of the mean gray level."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from pneumoscope.bundle.card import (
    FORMAT,
    INPUT_CLASSES,
    LABELS,
    Calibration,
    Card,
    OperatingPoint,
    Parity,
    Proportion,
    ReferenceDistribution,
    RejectionLimits,
)
from pneumoscope.bundle.multiclass_card import ClassThreshold, MulticlassCard, PredictionSets, TemperatureScaling
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.core.population import Population
from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.preprocess import Preprocessing

SIZE = 16
BROWSER_SECONDS = 40  # deadline of a wait in the browser; Playwright's 5 s can run out on a busy machine

# A shell ignores Ctrl-C for jobs in the background, and their processes inherit that; with a handler here, they do not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# By default, a collection follows every 700 new objects, and every hundredth examines the objects of all imported modules. That
# takes a tenth of the time of the tests.
gc.set_threshold(50_000)

# The same examples in each run, so that a failure is never by chance; and no limits on time, which a busy machine exceeds.
# Look for others with --hypothesis-profile=random.
for _name, _repeats in (("random", False), ("repeatable", True)):
    settings.register_profile(
        _name, deadline=None, max_examples=60, derandomize=_repeats, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("repeatable")

# --- tiers ---------------------------------------------------------------------------------------------------------------

HAS_TORCH = importlib.util.find_spec("torch") is not None
NEEDS_TORCH = re.compile(r"^pytestmark = .*pytest\.mark\.training\b", re.MULTILINE)
MARKER_OF_FIXTURE = {
    "browser": "browser",
    "postgresql_server": "database",
    "real_images": "real_data",
}
TIERS = {"browser", "database", "pacs", "real_data", "slow", "training"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip modules marked `training` if PyTorch is not installed or not needed: their imports fail, or take seconds."""
    wanted = HAS_TORCH and config.getoption("markexpr") != "fast"
    if wanted or collection_path.suffix != ".py":
        return None
    return bool(NEEDS_TORCH.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the fixtures and helpers that it uses, and as `fast` if it has no other marker."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKER_OF_FIXTURE:
                item.add_marker(MARKER_OF_FIXTURE[fixture])
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "postgresql" in (parameters.get("database"), parameters.get("empty_database")):
            item.add_marker("database")
        if hasattr(getattr(item, "module", None), "served"):
            item.add_marker("slow")
        if "training" in item.keywords and not HAS_TORCH:
            item.add_marker(pytest.mark.skip(reason="PyTorch is not installed (the extra [train])"))
        if {"slow", "training"} & item.keywords.keys() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))
        if not TIERS & {marker.name for marker in item.iter_markers()}:
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Exclude modules and collected tests, which last as long as the process, from garbage collections."""
    gc.collect()
    gc.freeze()


# --- images, bundles, runs -----------------------------------------------------------------------------------------------


def operating_point(threshold: float, rule: Any, target: float | None = None) -> OperatingPoint:
    """Return an operating point with 3 of 3 correct images, whose Wilson interval starts at 0.438."""
    proportion = Proportion(value=1, low=0.438, high=1, n=3, method="wilson")
    n = None if rule == "fixed" else 8
    return OperatingPoint(
        threshold=threshold, rule=rule, target=target, n=n, sensitivity=proportion, specificity=proportion
    )


POINTS = {
    "half": operating_point(0.5, "fixed"),
    "balanced": operating_point(0.4, "youden"),
    "rule_out": operating_point(0.2, "sensitivity", 0.99),
    "rule_in": operating_point(0.7, "specificity", 0.99),
}


# With these limits, `mean_gray_network` rejects mean gray levels below 76.5 as inverted and above 190 as out of distribution.
LIMITS = RejectionLimits(
    input_classes=INPUT_CLASSES,
    min_upright=0.3,
    max_distance=1.9,
    classifier_share=0.01,
    distance_share=0.02,
    rejected=Proportion(value=0, low=0, high=0.3, n=9, method="wilson"),
)


def halves(level: int, height: int = SIZE, width: int = SIZE) -> npt.NDArray[np.uint8]:
    """Return an image with this mean gray level whose right half is 16 levels brighter, so that it is not blank."""
    image = np.full((height, width), level - 8, np.int64)
    image[:, width // 2 :] += 16
    return np.clip(image, 0, 255).astype(np.uint8)


class Maker:
    """Creates data sets, bundles and runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(
        self, name: str = "images", *, split: str = "test", normal: int = 12, pneumonia: int = 20, seed: int = 0
    ):
        """Create a split in the layout of the public data set: two images per patient, pneumonias brighter on average."""
        random = np.random.default_rng(seed)
        for label, count, gray in (("NORMAL", normal, 105), ("PNEUMONIA", pneumonia, 145)):
            folder = self.root / name / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                patient = 100 * seed + number // 2
                etiology = "bacteria" if patient % 2 else "virus"
                stem = f"IM-{patient:04d}-{number:04d}" if label == "NORMAL" else f"person{patient}_{etiology}_{number}"
                level = np.clip(random.normal(gray, 30), 20, 235)
                pixels = np.clip(random.normal(level, 10, (SIZE, SIZE)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{stem}.png")
        return self.root / name

    def bundle(
        self,
        folder: Path,
        *,
        name: str = "gray",
        gain: float = 0.05,
        middle: float = 125.0,
        seen: Mapping[str, Sequence[str]] | None = None,
        operating_points: Mapping[str, OperatingPoint] = POINTS,
        rejection_limits: RejectionLimits | None = None,
        population: Population = Population(),  # noqa: B008  immutable
        age_range: tuple[float, float] | None = None,
        reference_distribution: ReferenceDistribution | None = None,
    ) -> Path:
        """Create a bundle with logit = gain x (mean gray level - middle), and input checks if it has rejection limits."""
        aged = rejection_limits is not None and rejection_limits.max_age_score is not None
        onnx = mean_gray_network(gain, middle, screened=rejection_limits is not None, aged=aged)
        card = Card(
            format=FORMAT,
            labels=LABELS,
            name=name,
            network="mean-gray",
            parameters=2,
            version="0.1.0",
            created="2026-01-02T03:04:05+00:00",
            onnx_sha256=hashlib.sha256(onnx).hexdigest(),
            onnx_bytes=len(onnx),
            self_test_logit=gain * (float(self_test_image(SIZE).mean()) - middle),
            preprocessing=Preprocessing(size=SIZE),
            calibration=Calibration(slope=0.8, intercept=0.1, method="platt", n=8, prevalence=0.5),
            intervals=None,
            rejection_limits=rejection_limits,
            reference_distribution=reference_distribution,
            population=population,
            age_range=age_range,
            operating_points=dict(operating_points),
            parity=Parity(images=8, largest=0.0),
            recipe={"name": name},
            seed=0,
            manifest_sha256="0" * 64,
            split_by="patient",
            counts={},
            seen={"train": [], "validation": [], **{split: list(hashes) for split, hashes in (seen or {}).items()}},
            best_epoch=1,
            machine={},
        )
        folder.mkdir(parents=True, exist_ok=True)  # a fixture of a module may be set up twice in one process
        (folder / "network.onnx").write_bytes(onnx)
        (folder / "card.json").write_text(card.to_json())
        return folder

    def run(self, folder_name: str = "gray", *, recipe: str = "", seed: int = 0, **bundle: Any) -> Path:
        """Create a finished run of a recipe, by default that of its folder: run.json, recipe.toml, epochs.csv and a bundle."""
        folder, name = self.root / "runs" / folder_name, recipe or folder_name
        self.bundle(folder / "bundle", name=name, **bundle)
        (folder / "recipe.toml").write_text(f'name = "{name}"\n')
        (folder / "epochs.csv").write_text(
            "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,validation_auroc,learning_rate,seconds\n"
            "1,0.6,0.7,0.6,0.72,0.8,0.001,2.0\n2,0.5,0.8,0.55,0.78,0.9,0.001,2.0\n"
        )
        record = {
            "schema": 1,
            "name": name,
            "state": "finished",
            "recipe": {"name": name, "training": {"seed": seed}},
            "seed": seed,
            "device": "cpu",
            "network": "mean-gray",
            "optimizer": "adam",
            "batch": 64,
            "image_size": SIZE,
            "epochs": 2,
            "weights": "none",
            "manifest_sha256": "9d" * 32,
            "counts": {},
            "split_by": "patient",
            "precision": "32",
            "versions": {},
            "machine": {},
            "started": "2026-01-02T03:04:05+00:00",
            "best_epoch": 2,
            "best_validation_accuracy": 0.78,
            "average_train_accuracy": 0.75,
            "average_validation_accuracy": 0.75,
            "seconds": 4.0,
        }
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    def classes(self, name: str = "classes", *, count: int = 12, seed: int = 0, split: str = "test") -> Path:
        """Create images of the classes dark, mid and bright, two per patient, and return their CSV file."""
        random = np.random.default_rng(seed)
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = ["path,label,patient,split"]
        for label, gray in (("bright", 165), ("dark", 85), ("mid", 125)):
            for number in range(count):
                level = np.clip(random.normal(gray, 25), 20, 235)
                pixels = np.clip(random.normal(level, 10, (SIZE, SIZE)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{label}-{seed}-{number}.png")
                rows.append(f"{label}-{seed}-{number}.png,{label},{label}-{seed}-{number // 2},{split}")
        (folder / "images.csv").write_text("\n".join(rows))
        return folder / "images.csv"

    def multiclass_bundle(
        self,
        folder: Path,
        *,
        name: str = "levels",
        gain: float = 0.05,
        edges: tuple[float, float] = (105.0, 145.0),
        seen: Mapping[str, Sequence[str]] | None = None,
        thresholds: Sequence[float] | None = (0.3, 0.3, 0.3),
        rejection_limits: RejectionLimits | None = None,
        age_range: tuple[float, float] | None = None,
        population: Population = Population(),  # noqa: B008  immutable
    ) -> Path:
        """Create a bundle of the classes bright, dark and mid, with the logits of `mean_gray_classes`."""
        onnx = mean_gray_classes(gain, edges, screened=rejection_limits is not None)
        level = float(self_test_image(SIZE).mean())
        sets = None
        if thresholds is not None:
            each = {
                name: ClassThreshold(threshold=value, n=20)
                for name, value in zip(GRAY_CLASSES, thresholds, strict=True)
            }
            sets = PredictionSets(coverage=0.95, classes=each)
        card = MulticlassCard(
            format=3,
            name=name,
            network="mean-gray",
            parameters=2,
            version="0.1.0",
            created="2026-01-02T03:04:05+00:00",
            onnx_sha256=hashlib.sha256(onnx).hexdigest(),
            onnx_bytes=len(onnx),
            self_test_logits=(gain * (level - edges[1]), gain * (edges[0] - level), 0.0),
            classes=GRAY_CLASSES,
            activation="softmax",
            preprocessing=Preprocessing(size=SIZE),
            calibration=TemperatureScaling(temperature=0.8, method="temperature", n=60),
            prediction_sets=sets,
            rejection_limits=rejection_limits,
            population=population,
            age_range=age_range,
            parity=Parity(images=8, largest=0.0),
            recipe={"name": name},
            seed=0,
            manifest_sha256="0" * 64,
            split_by="patient",
            counts={},
            seen={"train": [], "validation": [], **{split: list(hashes) for split, hashes in (seen or {}).items()}},
            best_epoch=1,
            machine={},
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "network.onnx").write_bytes(onnx)
        (folder / "card.json").write_text(card.to_json())
        return folder

    def multiclass_run(self, folder_name: str = "levels", *, recipe: str = "", seed: int = 0, **bundle: Any) -> Path:
        """Create a finished run with a bundle of several classes; see `run`."""
        folder = self.run(folder_name, recipe=recipe, seed=seed)
        self.multiclass_bundle(folder / "bundle", name=recipe or folder_name, **bundle)
        return folder

    def manifest(self, images: Path, split: str, *, share: int = 2) -> str:
        """Return a manifest, as CSV text, with every `share`-th image moved to another split."""
        rows = load_manifest(images).to_csv().splitlines()
        moved = (with_split(row, split) if i % share == 0 else row for i, row in enumerate(rows[1:]))
        return "\n".join([rows[0], *moved])


GRAY_CLASSES = ("bright", "dark", "mid")


def mean_gray_classes(gain: float, edges: tuple[float, float] = (105.0, 145.0), *, screened: bool = False) -> bytes:
    """Return the smallest ONNX file of a bundle of three classes, with the checks of `mean_gray_network` if `screened`.

    With a mean gray level m, the logits are gain x (m - edges[1]), gain x (edges[0] - m) and 0. The heatmap of a logit has the
    contribution of the mean gray level of each of 4 x 4 blocks.
    """
    import onnx  # takes a while to import

    model = onnx.load_from_string(mean_gray_network(gain, screened=screened))
    graph, helper, tensor = model.graph, onnx.helper, onnx.TensorProto
    kept = [node for node in graph.node if node.output[0] not in {"heatmap", "centered", "logit"}]
    del graph.node[:]
    graph.node.extend(
        [
            *kept,
            helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            helper.make_node("Mul", ["column", "slopes"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offsets"], ["logits"]),
            helper.make_node("Mul", ["blocks", "cell slopes"], ["heatmap"]),
        ]
    )
    graph.initializer.append(
        helper.make_tensor("cell slopes", tensor.FLOAT, [1, 3, 1, 1], [gain / 16, -gain / 16, 0.0])
    )
    constants = {"slopes": [gain, -gain, 0.0], "offsets": [-edges[1] * gain, edges[0] * gain, 0.0]}
    graph.initializer.extend(
        helper.make_tensor(name, tensor.FLOAT, [1, 3], values) for name, values in constants.items()
    )
    outputs = [each for each in graph.output if each.name not in {"logit", "heatmap"}]
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("logits", tensor.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("heatmap", tensor.FLOAT, ["n", 3, 4, 4]),
            *outputs,
        ]
    )
    content: bytes = model.SerializeToString()
    return content


def with_split(row: str, split: str) -> str:
    *before, _, sha256, split_by = row.split(",")
    return ",".join([*before, split, sha256, split_by])


def mean_gray_network(gain: float, middle: float = 125.0, *, screened: bool = False, aged: bool = False) -> bytes:
    """Return the smallest ONNX file of the bundle format.

    It maps uint8 images (n, SIZE, SIZE) to float32 logits (n,) and heatmaps (n, 4, 4). Each heatmap cell is gain times the
    block's mean gray level, divided by 16; the sum of all cells and of -middle x gain is the logit. With `screened`, the
    probability of "upright" is the mean gray level divided by 255, the rest is that of "inverted", and the distance is the
    mean gray level divided by 100. With `aged`, the age score is the mean gray level divided by 255.
    """
    from onnx import TensorProto, helper

    outputs = [
        ("logit", []),
        ("heatmap", [4, 4]),
        *([("input_classes", [7]), ("ood_distance", [])] if screened else []),
        *([("age_score", [])] if aged else []),
    ]

    nodes = [
        helper.make_node("Cast", ["image"], ["gray"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["gray", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "middle"], ["centered"]),
        helper.make_node("Unsqueeze", ["gray", "one"], ["map"]),
        helper.make_node("AveragePool", ["map"], ["blocks"], kernel_shape=[SIZE // 4] * 2, strides=[SIZE // 4] * 2),
        helper.make_node("Squeeze", ["blocks", "one"], ["cells"]),
        helper.make_node("Mul", ["cells", "cell gain"], ["heatmap"]),
        helper.make_node("Mul", ["centered", "gain"], ["logit"]),
    ]
    screen = [
        helper.make_node("Div", ["mean", "white"], ["light"]),
        helper.make_node("Sub", ["whole", "light"], ["dark"]),
        helper.make_node("Unsqueeze", ["light", "one"], ["upright column"]),
        helper.make_node("Unsqueeze", ["dark", "one"], ["inverted column"]),
        helper.make_node("Concat", ["upright column", "inverted column"], ["both"], axis=1),
        helper.make_node("Pad", ["both", "five more"], ["input_classes"]),
        helper.make_node("Div", ["mean", "unit"], ["ood_distance"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("middle", TensorProto.FLOAT, [], [middle]),
        helper.make_tensor("gain", TensorProto.FLOAT, [], [gain]),
        helper.make_tensor("cell gain", TensorProto.FLOAT, [], [gain / 16]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    if screened:
        nodes += screen
        constants += [
            helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
            helper.make_tensor("whole", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("unit", TensorProto.FLOAT, [], [100.0]),
            helper.make_tensor("five more", TensorProto.INT64, [4], [0, 0, 0, 5]),
        ]
    if aged:
        nodes.append(helper.make_node("Identity", ["light"], ["age_score"]))
    graph = helper.make_graph(
        nodes,
        "mean-gray",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture(scope="session", autouse=True)
def _ledger_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep evaluations by tests out of `results/`, also those that ran in a fixture of a module or in another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.jsonl"))
        yield


@pytest.fixture(scope="session")
def shared_maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Factory for data that many tests read; each module uses its own folder names."""
    return Maker(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Factory for images, bundles and runs; the test ledger is in the same folder."""
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    return Maker(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium; skipped if it is not installed.

    Playwright's event loop runs in the thread of the tests while the browser is open, and excludes any other: one per
    module.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    # The headless shell takes two thirds of the processor time.
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("Chromium is not installed")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
    playwright.expect.set_options(timeout=BROWSER_SECONDS * 1000)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=list(quiet))
        yield chromium
        chromium.close()
