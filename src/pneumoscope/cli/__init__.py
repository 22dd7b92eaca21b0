"""The command line. Commands parse arguments, call the library and print the results; they compute nothing themselves.

Heavy imports happen inside commands to keep `pneumoscope --help` fast.
"""

from __future__ import annotations

import codecs
import errno
import gc
import io
import json
import sys
import traceback
import warnings
from importlib import import_module

import click

from pneumoscope import __version__
from pneumoscope.core.errors import MissingExtraError, PneumoscopeError, StorageError, UnknownNameError

__all__ = ["EXTRAS", "VERBS", "cli", "main", "run_and_exit"]

# In the order of a typical workflow.
VERBS = (
    "phantom",
    "download",
    "check-data",
    "split",
    "recipes",
    "models",
    "train",
    "lr-find",
    "sweep",
    "evaluate",
    "robustness",
    "saliency-check",
    "shortcuts",
    "compare",
    "report",
    "reproduce",
    "export",
    "predict",
    "archive",
    "sample-size",
    "accept",
    "monitor",
    "serve",
    "pull",
    "outbox",
    "tokens",
    "audit-log",
    "storage",
)
_PLAIN, _PLAIN_BUT_BYTES = "pneumoscope.plain", "pneumoscope.plain-but-bytes"  # names of the encoding error handlers
EXTRAS = {
    "train": ("torch", "torchvision", "lightning", "timm", "onnx", "onnxscript", "tensorboard", "safetensors"),
    "serve": (
        "fastapi",
        "starlette",
        "uvicorn",
        "sqlalchemy",
        "alembic",
        "multipart",
        "prometheus_client",
        "pg8000",
        "segno",
    ),
    "pacs": ("pynetdicom", "highdicom", "dicomweb_client"),
    "archive": ("pyarrow", "duckdb", "fsspec", "ray"),
    "openid": ("authlib", "httpx2", "itsdangerous", "joserfc"),
    "evaluate": (
        "scipy",
        "sklearn",
        "matplotlib",
        "jinja2",
        "markdown_it",
        "markupsafe",
        "imagehash",
        "pooch",
        "requests",
        "threadpoolctl",
        "urllib3",
    ),
}


class _Verbs(click.Group):
    """Command group that lists commands in the order of `VERBS` and imports them on demand."""

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
    """Detect pneumonia on chest radiographs, with calibrated probabilities and honest statistics.

    Score an image:  pneumoscope predict image.jpg

    Draw images to try the commands:  pneumoscope phantom images
    """


def _encode_plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: minus signs by hyphens, others by their JSON escape sequences."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].replace("\N{MINUS SIGN}", "-")
    return "".join(mark if mark == "-" else json.dumps(mark)[1:-1] for mark in text), error.end


def _encode_plainly_but_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode the next character like `surrogateescape` if it is a byte of a path, otherwise like `_encode_plainly`."""
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return bytes([code - 0xDC00]), error.end
    return _encode_plainly(error)


codecs.register_error(_PLAIN, _encode_plainly)
codecs.register_error(_PLAIN_BUT_BYTES, _encode_plainly_but_bytes)


def main() -> None:
    """Run the console script."""
    run_and_exit(cli)


def run_and_exit(command: click.Command, arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status.

    0: done; 1: the command failed, or closed output; 2: usage error or unusable input; 3: some inputs failed, the rest are
    done; 4: `monitor --exit-code` found drift; 130: interrupted.

    Args:
        command: Command or group.
        arguments: Command-line arguments; None for those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # In the locales of most containers, undecodable paths are printed as their original bytes.
            stream.reconfigure(errors=_PLAIN_BUT_BYTES if stream.errors == "surrogateescape" else _PLAIN)
    # Decoder warnings quote the file, which may contain a patient's name.
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom|pneumoscope\.imaging)\b")
    try:
        status = command.main(args=given, prog_name="pneumoscope", standalone_mode=False)
        if isinstance(status, int) and status:  # in this mode, click returns the exit status
            sys.exit(status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(str(error) or "Interrupted", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the last handler: users see a message, not a traceback
        if "--debug" in given:
            traceback.print_exc()
        reported = _to_pneumoscope_error(error)
        click.echo(f"error: {reported}", err=True)
        sys.exit(reported.exit_status)
    finally:
        gc.freeze()  # a final garbage collection would take a tenth of the time of a short command


def _to_pneumoscope_error(error: Exception) -> PneumoscopeError:
    if isinstance(error, PneumoscopeError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        for extra, modules in EXTRAS.items():
            if error.name.partition(".")[0] in modules:
                return MissingExtraError(extra, "this command", error.name)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return StorageError(
            f"cannot write the output: {error.strerror}", hint="Free some disk space and run the command again"
        )
    return PneumoscopeError(
        f"{type(error).__name__}: {error}", hint="This is a bug. Show the traceback with: pneumoscope --debug ..."
    )
