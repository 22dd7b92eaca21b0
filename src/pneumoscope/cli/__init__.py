"""The command line: each verb parses, calls the function of its name, and prints. No number is computed here.

Nothing heavy is imported until a verb runs, so that `pneumoscope --help` answers at once.
"""

from __future__ import annotations

import errno
import sys
import traceback
from importlib import import_module

import click

from pneumoscope import __version__
from pneumoscope.core.errors import MissingExtraError, PneumoscopeError, StorageError, UnknownNameError

__all__ = ["VERBS", "cli", "main", "run_and_exit"]

# In the order in which a person meets them.
VERBS = (
    "phantom",
    "download",
    "check-data",
    "split",
    "recipes",
    "models",
    "train",
    "evaluate",
    "compare",
    "reproduce",
    "export",
    "predict",
    "serve",
    "audit-log",
)
_EXTRAS = {
    "train": ("torch", "torchvision", "lightning", "timm", "onnx", "onnxscript", "tensorboard", "safetensors"),
    "serve": (
        "fastapi",
        "starlette",
        "uvicorn",
        "h11",
        "sqlalchemy",
        "alembic",
        "multipart",
        "prometheus_client",
        "pg8000",
    ),
    "evaluate": ("scipy", "sklearn", "matplotlib", "jinja2", "markupsafe", "imagehash", "threadpoolctl"),
}


class _Verbs(click.Group):
    """Lists verbs in the order of `VERBS`, and imports a verb's file when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in VERBS:
            raise UnknownNameError("command", cmd_name, VERBS)
        command: click.Command = import_module(f"pneumoscope.cli.{cmd_name.replace('-', '_')}").command
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pneumoscope")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Identify pneumonia on chest radiographs, and defend every number.

    Try it without any image:  pneumoscope phantom images  and  pneumoscope train quick --data images --out run
    """


def main() -> None:
    """The console script."""
    run_and_exit(cli)


def run_and_exit(command: click.Command, arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 our fault, 2 the caller's, 3 some inputs failed and the others were done.

    It is 130 after Ctrl-C, and click makes it a silent 1 where whoever read the output has gone.

    Args:
        command: with or without verbs below it.
        arguments: those of the process where None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        command.main(args=given, prog_name="pneumoscope", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the last stop: whatever it is, a person is told in words
        if "--debug" in given:
            traceback.print_exc()
        told = _told(error)
        click.echo(f"error: {told}", err=True)
        sys.exit(told.exit_status)


def _told(error: Exception) -> PneumoscopeError:
    """What a person is told of an exception."""
    if isinstance(error, PneumoscopeError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        for extra, modules in _EXTRAS.items():
            if error.name.partition(".")[0] in modules:
                return MissingExtraError(extra, "this command", error.name)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return StorageError(
            f"what is printed cannot be written: {error.strerror}", hint="Free some space, and run it again"
        )
    return PneumoscopeError(
        f"{type(error).__name__}: {error}", hint="This is a fault of ours; show where with: pneumoscope --debug ..."
    )
