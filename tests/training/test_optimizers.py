"""The report's optimizers, compared with three steps computed by hand on one weight; gradients 1, -2, 0.5."""

import math
import re

import pytest
import torch
from tests.training.conftest import small
from torch import nn

from pneumoscope.core.errors import RecipeError
from pneumoscope.runs.epochs import count_plateaus
from pneumoscope.runs.recipe import OptimizerOptions
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.training.optimizers import create_optimizer, create_schedule

pytestmark = pytest.mark.training

GRADIENTS = (1.0, -2.0, 0.5)


def walk(options, gradients=GRADIENTS):
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = create_optimizer(options, [weight])
    values = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(weight.item())
    return values


def test_sgd_steps_by_learning_rate_times_gradient():
    # 1 - 0.01 x 1;  + 0.01 x 2;  - 0.01 x 0.5
    assert walk(read_recipe("alexnet-sgd").optimizer) == pytest.approx([0.99, 1.01, 1.005], abs=1e-12)


def test_rmsprop_has_epsilon_inside_the_root():
    weight, square, expected = 1.0, 0.0, []
    for g in GRADIENTS:
        square = 0.9 * square + 0.1 * g * g
        weight -= 0.001 * g / math.sqrt(square + 1e-7)
        expected.append(weight)
    # By hand, the first step: E = 0.1, so 1 - 0.001 / sqrt(0.1000001) = 1 - 0.0031622761 = 0.9968377239.
    assert expected[0] == pytest.approx(0.9968377239, abs=1e-10)

    assert walk(read_recipe("vgg19-rmsprop").optimizer) == pytest.approx(expected, abs=1e-14)


def test_rmsprop_differs_from_torch_for_small_gradients():
    # g = 1e-4: inside, sqrt(1e-9 + 1e-7); outside, sqrt(1e-9) + 1e-7.
    step = 1 - walk(read_recipe("vgg19-rmsprop").optimizer, [1e-4])[0]

    assert step == pytest.approx(0.001 * 1e-4 / math.sqrt(1e-9 + 1e-7), rel=1e-9)
    assert step < 0.2 * (0.001 * 1e-4 / (math.sqrt(1e-9) + 1e-7))


def test_adam_corrects_the_bias_of_its_averages():
    weight, m, v, expected = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight -= 0.001 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-7)
        expected.append(weight)
    # By hand, the first step is the learning rate itself: 1 - 0.001 x 1 / (1 + 1e-7).
    assert expected[0] == pytest.approx(0.9990000001, abs=1e-12)

    assert walk(read_recipe("alexnet-adam").optimizer) == pytest.approx(expected, abs=1e-12)


def test_adamw_decouples_weight_decay_from_the_gradient():
    values = walk(OptimizerOptions(name="adamw", learning_rate=0.1, weight_decay=0.5), [0.0])

    assert values == pytest.approx([1 - 0.1 * 0.5 * 1.0])


def test_frozen_parameters_are_not_optimized():
    trainable, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)

    groups = create_optimizer(OptimizerOptions(name="sgd"), [trainable, frozen]).param_groups

    assert [parameter is trainable for group in groups for parameter in group["params"]] == [True]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (OptimizerOptions(), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            OptimizerOptions(schedule="cosine", warmup_epochs=0.5),
            [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6))],
        ),
        (OptimizerOptions(schedule="step", step_epochs=1, step_factor=0.5), 4 * [1.0] + 4 * [0.5]),
    ],
)
def test_learning_rate_follows_warmup_and_schedule(options, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = create_schedule(options, optimizer, steps=8, steps_per_epoch=4)
    factors = []
    for _ in range(8):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert factors == pytest.approx(expected)


def test_one_cycle_is_that_of_torch():
    def rates(schedule):
        found = []
        for _ in range(40):
            found.append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
        return found

    ours = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    theirs = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    expected = rates(torch.optim.lr_scheduler.OneCycleLR(theirs, 0.3, total_steps=41, cycle_momentum=False))
    options = OptimizerOptions(schedule="one_cycle", learning_rate=0.3)
    assert rates(create_schedule(options, ours, steps=41, steps_per_epoch=10)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateaus_are_those_of_torch(patience):
    losses = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.75, 0.72, 0.71, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    # torch waits for one epoch more than its patience.
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0, threshold_mode="abs"
    )
    for number, loss in enumerate(losses, start=1):
        schedule.step(loss)
        assert 0.5 ** count_plateaus(losses[:number], patience) == optimizer.param_groups[0]["lr"]
    assert count_plateaus(losses, patience) > 0


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optimizer": {"step_epochs": 2}}, "optimizer.step_epochs: the schedule 'constant' has no such option"),
        ({"optimizer": {"schedule": "cosine", "step_factor": 0.5}}, "optimizer.step_factor: the schedule 'cosine'"),
        ({"optimizer": {"schedule": "one_cycle", "warmup_epochs": 1}}, "has its own warm-up"),
        ({"training": {"early_stopping": 2, "select": "last"}}, "training.early_stopping: needs a metric"),
    ],
)
def test_options_that_a_schedule_does_not_use_are_errors(tables, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        small(**tables)
