"""Options that several commands share, and the command line that results record."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pneumoscope.cli import VERBS, cli
from pneumoscope.cli.data_options import data_argument, data_option
from pneumoscope.cli.options import json_option, overrides_option, recorded_command, seed_option
from pneumoscope.core.errors import UsageError


@click.command("try")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@data_option
@overrides_option
@seed_option
@click.option("--resume", is_flag=True)
@click.option("--color/--no-color", default=True)
@json_option
def command(**_: object) -> None:
    click.echo(recorded_command())


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (["a", "--data", "images"], ["a", "--data", "images"]),
        (["--seed", "3", "--data", "images", "a", "b"], ["a", "b", "--data", "images", "--seed", "3"]),
        (["a", "--data", "my images", "--seed", "0", "--json"], ["a", "--data", "my images"]),
        (["--data", "d", "--set", "a=1", "--set", "b=2"], ["--data", "d", "--set", "a=1", "--set", "b=2"]),
        (["--data", "d", "--resume", "--no-color"], ["--data", "d", "--resume", "--no-color"]),
    ],
)
def test_recorded_command_line_has_what_differs_from_the_defaults(given: list[str], recorded: list[str]) -> None:
    result = CliRunner().invoke(command, given)

    assert result.output == shlex.join(["pneumoscope", "try", *recorded]) + "\n"
    assert CliRunner().invoke(command, shlex.split(result.output)[2:]).output == result.output


@click.command("measure")
@click.argument("target", type=click.Path(path_type=Path))
@data_argument
@seed_option
def measure(target: Path, data: Path, seed: int) -> None:
    click.echo(f"{target} {data!r} {seed}\n{recorded_command()}")


@pytest.mark.parametrize("given", [["run", "images"], ["run", "--data", "images"]])
def test_data_set_is_an_argument_or_an_option(given: list[str]) -> None:
    result = CliRunner().invoke(measure, given)

    assert result.stdout == f"run {Path('images')!r} 0\n{shlex.join(['pneumoscope', 'measure', *given])}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["run"], "DATA is missing. Give the labeled data set once, as the argument DATA or by --data"),
        (["run", "images", "--data", "images"], "DATA is given twice, as an argument and by --data. Give"),
    ],
)
def test_data_set_that_is_missing_or_given_twice_is_a_usage_error(given: list[str], message: str) -> None:
    result = CliRunner().invoke(measure, given)

    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_measurements_of_a_network_take_the_data_set_alike() -> None:
    top = click.Context(cli)
    found = set()
    for verb in ("robustness", "saliency-check", "shortcuts"):
        command = cli.get_command(top, verb)
        assert command is not None
        arguments = tuple(each.metavar for each in command.params if isinstance(each, click.Argument))
        (option,) = [each for each in command.params if "--data" in each.opts and isinstance(each, click.Option)]
        found.add((arguments, option.help))
        assert " DATA" in (command.help or "")
    assert len(found) == 1
    arguments, text = found.pop()
    assert arguments == ("RUN|BUNDLE", "[DATA]")
    assert str(text).endswith("instead of the argument DATA. One of the two is required.")


def test_an_option_means_the_same_in_every_command() -> None:
    """These have one help text wherever they appear; --out or --split differ between commands."""
    top = click.Context(cli)
    texts: dict[str, set[str]] = {
        "--accelerator": set(),
        "--devices": set(),
        "--ledger": set(),
        "--model": set(),
        "--set": set(),
    }
    for verb in VERBS:
        command = cli.get_command(top, verb)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.opts[0] in texts:
                texts[parameter.opts[0]].add(parameter.help or "")
    assert {name: len(found) for name, found in texts.items()} == dict.fromkeys(texts, 1)
