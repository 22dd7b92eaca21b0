"""Each optimizer of the report, worked by hand for three steps on one weight; gradients 1, -2, 0.5."""

import math

import pytest
import torch
from torch import nn

from pneumoscope.reproduction.recipes import report_recipes
from pneumoscope.runs.recipe import Optimizer, read_recipe
from pneumoscope.training.optimizers import make_optimizer, make_schedule

pytestmark = pytest.mark.training

GRADIENTS = (1.0, -2.0, 0.5)


def walk(choice, gradients=GRADIENTS):
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = make_optimizer(choice, [weight])
    places = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        places.append(weight.item())
    return places


def test_sgd():
    # 1 - 0.01 x 1;  + 0.01 x 2;  - 0.01 x 0.5
    assert walk(read_recipe("alexnet-sgd", recipes=report_recipes()).optimizer) == pytest.approx(
        [0.99, 1.01, 1.005], abs=1e-12
    )


def test_rmsprop_has_epsilon_inside_the_root():
    place, square, expected = 1.0, 0.0, []
    for g in GRADIENTS:
        square = 0.9 * square + 0.1 * g * g
        place -= 0.001 * g / math.sqrt(square + 1e-7)
        expected.append(place)
    # By hand, the first step: E = 0.1, so 1 - 0.001 / sqrt(0.1000001) = 1 - 0.0031622761 = 0.9968377239.
    assert expected[0] == pytest.approx(0.9968377239, abs=1e-10)

    assert walk(read_recipe("vgg19-rmsprop", recipes=report_recipes()).optimizer) == pytest.approx(expected, abs=1e-14)


def test_rmsprop_differs_from_torchs_where_gradients_are_small():
    # g = 1e-4: inside, sqrt(1e-9 + 1e-7); outside, sqrt(1e-9) + 1e-7.
    ours = 1 - walk(read_recipe("vgg19-rmsprop", recipes=report_recipes()).optimizer, [1e-4])[0]

    assert ours == pytest.approx(0.001 * 1e-4 / math.sqrt(1e-9 + 1e-7), rel=1e-9)
    assert ours < 0.2 * (0.001 * 1e-4 / (math.sqrt(1e-9) + 1e-7))


def test_adam():
    place, m, v, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        place -= 0.001 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-7)
        expected.append(place)
    # By hand, the first step is the learning rate itself: 1 - 0.001 x 1 / (1 + 1e-7).
    assert expected[0] == pytest.approx(0.9990000001, abs=1e-12)

    assert walk(read_recipe("alexnet-adam", recipes=report_recipes()).optimizer) == pytest.approx(expected, abs=1e-12)


def test_adamw_decays_weights_apart_from_the_gradient():
    places = walk(Optimizer(name="adamw", learning_rate=0.1, weight_decay=0.5), [0.0])

    assert places == pytest.approx([1 - 0.1 * 0.5 * 1.0])


def test_what_is_frozen_is_left_out():
    moving, held = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)

    groups = make_optimizer(Optimizer(name="sgd"), [moving, held]).param_groups

    assert [parameter is moving for group in groups for parameter in group["params"]] == [True]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Optimizer(), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            Optimizer(schedule="cosine", warmup_epochs=0.5),
            [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6))],
        ),
    ],
)
def test_the_learning_rate_rises_and_falls_as_the_recipe_says(choice, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = make_schedule(choice, optimizer, steps=8, steps_an_epoch=4)
    factors = []
    for _ in range(8):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert factors == pytest.approx(expected)
