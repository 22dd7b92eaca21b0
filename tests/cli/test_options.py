"""Options that several commands share, and the command line that results record."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pneumoscope.cli import VERBS, cli
from pneumoscope.cli.data_options import data_option
from pneumoscope.cli.options import json_option, overrides_option, recorded_command, seed_option


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
