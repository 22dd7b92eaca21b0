"""The command line as a whole: help, exit statuses, error messages, missing extras, interruption and closed pipes."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import click
import pytest
from tests.processes import started

import pneumoscope
from pneumoscope import cli as module
from pneumoscope.cli import VERBS, cli, run_and_exit
from pneumoscope.core import errors
from pneumoscope.core.errors import (
    InvalidIdentityError,
    MissingExtraError,
    MulticlassBundleError,
    PneumoscopeError,
    TooManyRequestsError,
    UnknownNameError,
    UnreadableImageError,
)

HEAVY_MODULES = (
    "torch", "onnx", "onnxruntime", "numpy", "scipy", "matplotlib", "msgspec", "pydantic", "pydicom", "sklearn", "PIL",
    "lightning", "sqlalchemy", "fastapi",
)  # fmt: skip
SOURCE = Path(pneumoscope.__file__).parent
PROGRAM = [sys.executable, "-m", "pneumoscope"]
Capture = pytest.CaptureFixture[str]


def exit_of(capsys: Capture, *arguments: str, command: click.Command = cli) -> tuple[int, str, str]:
    """Return the exit status, standard output and standard error of a command that fails."""
    with pytest.raises(SystemExit) as stop:
        run_and_exit(command, list(arguments))
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, captured.out, captured.err


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_description(capsys: Capture) -> None:
    run_and_exit(cli, ["--help"])

    text = capsys.readouterr().out
    lines = [line.split(None, 1) for line in text.partition("Commands:\n")[2].splitlines()]
    assert [line[0] for line in lines] == list(VERBS)
    assert all(len(line[1]) > 10 and not line[1].endswith("...") for line in lines)


def test_every_command_has_a_module() -> None:
    modules = {path.stem for path in (SOURCE / "cli").glob("*.py")} - {
        "__init__",
        "archive_output",
        "data_options",
        "evaluated_runs",
        "evaluation_tables",
        "evaluation_targets",
        "multiclass",
        "options",
        "process",
        "progress",
        "service_database",
    }
    assert modules == {name.replace("-", "_") for name in VERBS}


def test_commands_describe_the_database_alike() -> None:
    helps = [
        (option.metavar, option.help)
        for _, command in subcommands()
        for option in command.params
        if isinstance(option, click.Option) and option.name == "database"
    ]
    assert len(helps) == 10
    assert len(set(helps)) == 1


def test_every_module_exports_its_names() -> None:
    for path in (SOURCE / "cli").glob("*.py"):
        assert "\n__all__ = [" in path.read_text(), path.name


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], *([name, "--help"] for name in VERBS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from pneumoscope.cli import run_and_exit, cli
run_and_exit(cli, {arguments!r})
print(*(name for name in {HEAVY_MODULES!r} if name in sys.modules), file=sys.stderr)
"""
    completed = run_python("-c", code)
    assert (completed.returncode, completed.stderr) == (0, "\n")
    assert completed.stdout.startswith("pneumoscope, version" if "--version" in arguments else "Usage: pneumoscope")


def subcommands() -> list[tuple[str, click.Command]]:
    """Return every command and the commands of groups, with their names."""
    context = click.Context(cli)
    found: list[tuple[str, click.Command]] = []
    for name in VERBS:
        command = cli.get_command(context, name)
        assert command
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {child}", sub) for child, sub in command.commands.items()]
    return found


def test_every_option_is_documented() -> None:
    for name, command in subcommands():
        assert command.name == name.split()[-1]
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "accelerator":
                assert option.help, f"{name} {option.name}"


def test_json_output_has_the_same_flag_everywhere() -> None:
    flags = {
        name: option.opts for name, command in subcommands() for option in command.params if option.name == "as_json"
    }
    assert len(flags) > 8
    assert set(map(tuple, flags.values())) == {("--json",)}


def test_python_m_runs_the_same_program() -> None:
    completed = run_python("-m", "pneumoscope", "--version")

    version = f"pneumoscope, version {pneumoscope.__version__}\n"
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, version, "")


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("pneumoscope")
    completed = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)

    assert completed.stdout == f"pneumoscope, version {pneumoscope.__version__}\n"


# --- exit statuses ---------------------------------------------------------------------------------------------------

# All other errors are errors of the input, with status 2.
OTHER_STATUSES = {
    "PneumoscopeError": 1,
    "DivergedError": 1,
    "StorageError": 1,
    "BusyError": 1,
    "ArchiveError": 1,
    "AuditLogError": 1,
    "ParityError": 1,
    "PartialFailureError": 3,
}
ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, PneumoscopeError) and error.__module__ == errors.__name__
]


def example(error_class: type[PneumoscopeError]) -> PneumoscopeError:
    """Return an error of a class; some take other arguments than a message and a hint."""
    if issubclass(error_class, UnknownNameError):
        return error_class("recipe", "alexnet-adm", ["vgg19-adam", "alexnet-adam"])
    if issubclass(error_class, MissingExtraError):
        return error_class("train", "training", "torch")
    if issubclass(error_class, UnreadableImageError):
        return error_class("a/image.png", "truncated", hint="Copy it again")
    if issubclass(error_class, TooManyRequestsError):
        return error_class("too many failed attempts", retry_seconds=4)
    if issubclass(error_class, MulticlassBundleError):
        return error_class("etiology", ("bacteria", "normal", "virus"))
    if issubclass(error_class, InvalidIdentityError):
        fields = {"patient_birth_date": "date_in_future"}
        return error_class("the birth date is in the future", fields=fields, hint="Correct it")
    return error_class("the image 'a' is blank", hint="Choose another")


def failing(error: BaseException) -> click.Command:
    @click.command()
    @click.option("--debug", is_flag=True)
    def command(debug: bool) -> None:
        raise error

    return command


@pytest.mark.parametrize("error_class", ERRORS, ids=lambda error_class: error_class.__name__)
def test_every_error_has_its_exit_status_and_is_printed_on_one_line(
    capsys: Capture, error_class: type[PneumoscopeError]
) -> None:
    error = example(error_class)
    status = OTHER_STATUSES.get(error_class.__name__, 2)

    assert exit_of(capsys, command=failing(error)) == (status, "", f"error: {error}\n")


def test_unexpected_exceptions_are_internal_errors_without_traceback(capsys: Capture) -> None:
    assert exit_of(capsys, command=failing(ZeroDivisionError("division by zero"))) == (
        1,
        "",
        "error: ZeroDivisionError: division by zero. This is a bug. Show the traceback with: pneumoscope --debug ...\n",
    )


def test_success_returns_without_exit(capsys: Capture) -> None:
    run_and_exit(cli, ["models", "--json"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "--bogus"], "No such option"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "quick", "--out", "run"], "Missing option '--data'"),
        (["train", "quick", "--data", "d", "--out", "o", "--devices", "two"], "'two' is not a valid integer range"),
        (["evaluate", "run", "extra", "--data", "d"], "unexpected extra argument"),
        (["--bogus"], "No such option"),
    ],
)
def test_usage_errors_exit_with_2_and_point_to_the_help(capsys: Capture, arguments: list[str], message: str) -> None:
    status, out, err = exit_of(capsys, *arguments)

    assert (status, out) == (2, "")
    assert message in err
    assert "--help" in err


@pytest.mark.parametrize("value", ["", "abc", "0" * 63])
def test_invalid_expected_hash_is_rejected(capsys: Capture, value: str) -> None:
    """An empty value, as from a failed script, must not skip the check."""
    status, out, err = exit_of(capsys, "audit-log", "verify", "--expect-hash", value)

    assert (status, out) == (2, "")
    assert "is not a SHA-256 hash" in err


def test_missing_command_shows_the_help_and_exits_with_2(capsys: Capture) -> None:
    status, _, err = exit_of(capsys)

    assert status == 2
    assert "Commands:" in err


def test_unknown_command_suggests_the_closest(capsys: Capture) -> None:
    assert exit_of(capsys, "trian") == (2, "", "error: there is no command 'trian'. Did you mean 'train'?\n")


def test_main_uses_the_arguments_of_the_process(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "recipes", "nowhere"])

    with pytest.raises(SystemExit) as stop:
        module.main()

    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no recipe 'nowhere'.")


def test_traceback_is_printed_only_with_debug(capsys: Capture) -> None:
    status, _, err = exit_of(capsys, "recipes", "nowhere")
    assert (status, err.count("\n")) == (2, 1)
    assert "Traceback" not in err

    status, out, err = exit_of(capsys, "--debug", "recipes", "nowhere")
    assert (status, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):")
    assert "read_recipe" in err
    assert err.splitlines()[-1].startswith("error: there is no recipe 'nowhere'.")


# --- missing extras --------------------------------------------------------------------------------------------------

BLOCK_MODULES = """
import sys
blocked, arguments = sys.argv[1].split(","), sys.argv[2:]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["pneumoscope", *arguments]
from pneumoscope.cli import main
main()
"""


def run_without(extras: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot import the modules of some extras."""
    blocked = ",".join(name for extra in extras for name in module.EXTRAS[extra])
    return run_python("-c", BLOCK_MODULES, blocked, *map(str, arguments))


@pytest.mark.parametrize("arguments", [["train", "quick"], ["reproduce"]])
def test_training_without_its_extra_names_the_extra(tmp_path: Path, arguments: list[str]) -> None:
    completed = run_without(["train"], *arguments, "--data", tmp_path, "--out", tmp_path / "run")

    assert (completed.returncode, completed.stdout) == (2, "")
    # The first missing module depends on the order of imports.
    assert re.fullmatch(
        r"error: this command needs the extra \[train\] \(no module '(torch|timm|lightning)'\)\."
        r" Install it: pip install 'pneumoscope\[train\]'\n",
        completed.stderr,
    )
    assert not (tmp_path / "run").exists()


def test_saliency_check_without_onnx_names_the_extra(tmp_path: Path) -> None:
    completed = run_without(["train"], "saliency-check", tmp_path, "--data", tmp_path)

    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr == (
        "error: this command needs the extra [train] (no module 'onnx'). Install it: pip install 'pneumoscope[train]'\n"
    )


def test_serving_without_its_extra_names_the_extra(tmp_path: Path) -> None:
    completed = run_without(["serve"], "serve", "--port", "0", "--data-dir", tmp_path / "records")

    assert (completed.returncode, completed.stdout) == (2, "")
    assert "needs the extra [serve]" in completed.stderr
    assert "pip install 'pneumoscope[serve]'" in completed.stderr
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check-data", "{}"],
        ["compare", "{}", "--out", "{}/out"],
        ["evaluate", "{}", "--data", "{}", "--out", "{}/out"],
        ["robustness", "{}", "--data", "{}"],
    ],
)
def test_statistics_without_their_extra_name_the_extra(tmp_path: Path, arguments: list[str]) -> None:
    completed = run_without(["train", "evaluate"], *(word.format(tmp_path) for word in arguments))

    assert (completed.returncode, completed.stdout) == (2, "")
    assert "needs the extra [evaluate]" in completed.stderr
    assert "pip install 'pneumoscope[evaluate]'" in completed.stderr
    assert completed.stderr.count("\n") == 1


def test_core_commands_work_without_extras(maker: Any, tmp_path: Path) -> None:
    images, bundle = maker.images(split="train", normal=40, pneumonia=40), maker.bundle(tmp_path / "bundle")
    for arguments in (
        ["phantom", tmp_path / "drawn", "--train", "4", "--test", "4", "--size", "32"],
        ["split", images, "--out", tmp_path / "manifest.csv"],
        ["recipes", "quick"],
        ["models"],
        ["export", bundle, "--out", tmp_path / "copy"],
        ["predict", images, "--model", bundle],
        ["download", "--help"],
    ):
        completed = run_without(["train", "evaluate", "serve"], *arguments)
        assert (completed.returncode, bool(completed.stdout)) == (0, True), completed.stderr


def test_evaluation_works_without_pytorch(maker: Any, tmp_path: Path) -> None:
    arguments = ["evaluate", maker.run(), "--data", maker.images(), "--ledger", tmp_path / "ledger.jsonl"]
    completed = run_without(["train"], *arguments)

    assert completed.returncode == 0, completed.stderr
    assert "gray on 32 test images" in completed.stdout


def test_missing_module_of_no_extra_is_an_internal_error(capsys: Capture) -> None:
    error = ModuleNotFoundError("No module named 'pneumoscope.nowhere'", name="pneumoscope.nowhere")
    status, _, err = exit_of(capsys, command=failing(error))

    assert status == 1
    assert "ModuleNotFoundError: No module named 'pneumoscope.nowhere'" in err


def distribution_of(requirement: str) -> str:
    return requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-")


@pytest.mark.training  # needs the distributions of all extras
def test_modules_of_extras_match_pyproject() -> None:
    """Every distribution of an extra has a module in `EXTRAS`, so that the error names the extra."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    known = packages_distributions()
    for extra in ("train", "evaluate"):
        requirements = {distribution_of(each) for each in project["optional-dependencies"][extra]}
        mapped = {known[name][0].lower() for name in module.EXTRAS[extra]}
        assert requirements - {"pneumoscope"} <= mapped


@pytest.mark.training
def test_every_imported_distribution_is_declared() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {distribution_of(requirement) for requirement in [*project["dependencies"], *extras]}
    known = packages_distributions()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pneumoscope"}:
                assert known[top][0].lower().replace("_", "-") in declared, f"{path.name} imports {top}"


# --- interruption, closed pipes, full disks --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["models", "--json"]])
def test_closed_pipe_ends_the_command_silently(arguments: list[str]) -> None:
    with started([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_output_can_be_piped_into_head() -> None:
    completed = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m pneumoscope recipes | head -1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert completed.stdout.startswith("baseline ")
    assert completed.stdout.count("\n") == 1
    assert completed.stderr == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_commands_exit_with_130(capsys: Capture, error: BaseException) -> None:
    status, out, err = exit_of(capsys, command=failing(error))

    assert (status, out, err.strip()) == (130, "", "Interrupted")


def test_ctrl_c_interrupts_a_running_command(tmp_path: Path) -> None:
    arguments = ["phantom", tmp_path / "images", "--train", "100000", "--size", "32"]
    with started([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any(tmp_path.rglob("*.jpeg")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "Interrupted")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["models"], ["recipes", "--json"]])
def test_full_disk_behind_standard_output_is_reported(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        completed = subprocess.run(
            [*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert completed.returncode == 1
    assert "cannot write the output: No space left on device" in completed.stderr


def test_minus_signs_are_hyphens_where_the_output_encoding_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def command() -> None:
        click.echo("\N{MINUS SIGN}0.5 Ж")

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1", write_through=True))
    run_and_exit(command, [])
    assert written.getvalue() == b"-0.5 \\u0416\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", b"/data/\xff/\xd0\x96 \xe2\x88\x921\n"),
        ("latin-1", b"/data/\xff/\\u0416 -1\n"),
    ],
)
def test_bytes_of_a_path_are_printed_as_they_are_where_the_locale_keeps_them(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    """The standard streams have the error handler surrogateescape in the locales C, POSIX and C.UTF-8."""

    @click.command()
    def command() -> None:
        click.echo("/data/\udcff/Ж \N{MINUS SIGN}1")

    stream = io.BytesIO()
    output = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    run_and_exit(command, [])
    assert stream.getvalue() == written


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_json_stays_valid_in_every_output_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = "\N{GRINNING FACE} \x81 Ж é"

    @click.command()
    def command() -> None:
        click.echo(json.dumps(text, ensure_ascii=False))

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    run_and_exit(command, [])
    assert json.loads(written.getvalue().decode(encoding)) == text
