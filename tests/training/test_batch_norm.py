"""Batch normalisation of two processes' uneven shares is one process's of the whole batch."""

import copy
import socket
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from pneumoscope.models.factory import create_model
from pneumoscope.training.batch_norm import JointBatchNorm

pytestmark = pytest.mark.training

IMAGES = 15  # shared as 8 and 7
LAYERS = {
    "1d": lambda: nn.BatchNorm1d(6, eps=1e-3, momentum=0.01),
    "2d": lambda: nn.BatchNorm2d(6),
    "channels last": lambda: nn.BatchNorm2d(6).to(memory_format=torch.channels_last),
    "bf16": lambda: nn.BatchNorm2d(6),
    "with an activation": lambda: BatchNormAct2d(6, act_layer=nn.SiLU),
    "without weights": lambda: nn.BatchNorm2d(6, affine=False),
    "plain mean over batches": lambda: nn.BatchNorm2d(6, momentum=None),
    "without running statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
}


def case(name):
    """A layer with weights of its own, two batches far from zero, and what their outputs count in the loss."""
    generator = torch.Generator().manual_seed(sorted(LAYERS).index(name))
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    shape = (IMAGES, 6) if name == "1d" else (IMAGES, 6, 5, 4)
    batches = [torch.randn(shape, generator=generator) * 3 + 7 for _ in range(2)]
    if name == "channels last":
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    if name == "bf16":
        batches = [batch.bfloat16() for batch in batches]
    return layer, batches, torch.randn(shape, generator=generator)


def step(layer, batches, counts):
    """Two batches through a layer: outputs, gradients of the inputs, and gradients of the weights."""
    inputs = [batch.clone(memory_format=torch.preserve_format).requires_grad_() for batch in batches]
    outputs = [layer(batch) for batch in inputs]
    sum((output * counts).sum() for output in outputs).backward()
    return {
        "outputs": [output.detach() for output in outputs],
        "inputs": [batch.grad for batch in inputs],
        "weights": [parameter.grad for parameter in layer.parameters()],
        "buffers": dict(layer.named_buffers()),
    }


def work(rank, port, folder):
    """One process of the two: this file is their program."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    made = {}
    for name in LAYERS:
        layer, batches, counts = case(name)
        with JointBatchNorm():
            made[name] = step(layer, [batch[rank::2] for batch in batches], counts[rank::2])
    torch.save(made, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    from tests.processes import started  # this file also runs as a script, which does not find `tests`

    folder = tmp_path_factory.mktemp("shares")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__]
    with (
        started([*command, "0", str(port), folder], deadline=120) as first,
        started([*command, "1", str(port), folder], deadline=120) as second,
    ):
        pass
    assert (first.returncode, second.returncode) == (0, 0)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def joined(parts):
    whole = torch.empty(IMAGES, *parts[0].shape[1:], dtype=parts[0].dtype)
    whole[0::2], whole[1::2] = parts
    return whole


@pytest.mark.parametrize("name", LAYERS)
def test_uneven_shares_are_normalised_as_the_whole_batch_is(shares, name):
    whole = step(*case(name))
    parts = [share[name] for share in shares]

    # bf16 has 8 bits: a last bit of outputs up to 8 is 1/32, and gradients are rounded on the way.
    close = {"rtol": 2**-7, "atol": 2**-5} if name == "bf16" else {"rtol": 1e-5, "atol": 2e-5}
    for kind in ("outputs", "inputs"):
        for number, expected in enumerate(whole[kind]):
            torch.testing.assert_close(joined([part[kind][number] for part in parts]), expected, **close)
    for number, expected in enumerate(whole["weights"]):
        torch.testing.assert_close(sum(part["weights"][number] for part in parts), expected, rtol=1e-5, atol=1e-4)
    for part in parts:
        torch.testing.assert_close(part["buffers"], whole["buffers"], rtol=1e-5, atol=2e-5)
    for buffer, value in parts[0]["buffers"].items():
        assert torch.equal(value, parts[1]["buffers"][buffer])


@pytest.mark.parametrize("name", ["2d", "with an activation"])
def test_a_layer_held_still_waits_for_nobody(name):
    # No process group was made here: whoever speaks to one fails.
    layer, batches, counts = case(name)
    layer.eval()
    expected = step(copy.deepcopy(layer), batches, counts)

    with JointBatchNorm():
        made = step(layer, batches, counts)

    torch.testing.assert_close(made, expected, rtol=0, atol=0)
    with JointBatchNorm(), pytest.raises(ValueError, match="process group has not been initialized"):
        layer.train()(batches[0])


def test_what_gpus_get_instead_is_the_same_network_with_the_same_names():
    # torch's own conversion would leave out the activations inside timm's layers.
    network = create_model("test_efficientnet", image_size=32).eval()
    converted = convert_sync_batchnorm(copy.deepcopy(network))
    images = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)

    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in converted.modules())
    torch.testing.assert_close(converted.state_dict(), network.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(converted(images), network(images))


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
