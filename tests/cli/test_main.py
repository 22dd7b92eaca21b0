"""The command line as a whole: quick help, exit statuses, and words instead of tracebacks."""

import ast
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest
from tests.core.test_errors import SPECIAL, drawn
from tests.processes import started

import pneumoscope
from pneumoscope import cli as module
from pneumoscope.cli import VERBS, cli, run_and_exit
from pneumoscope.core import errors

HEAVY = ("torch", "onnxruntime", "numpy", "scipy", "matplotlib", "msgspec", "pydantic", "sklearn", "PIL", "lightning")
SOURCE = Path(pneumoscope.__file__).parent


def exits(capsys, *arguments, command=cli):
    """Status, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        run_and_exit(command, list(arguments))
    found = capsys.readouterr()
    return stop.value.code, found.out, found.err


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60, **options
    )


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_with_a_line(capsys):
    run_and_exit(cli, ["--help"])

    shown = capsys.readouterr().out
    lines = [line.split(None, 1) for line in shown.partition("Commands:\n")[2].splitlines()]
    assert [line[0] for line in lines] == list(VERBS)
    assert all(len(line[1]) > 10 and not line[1].endswith("...") for line in lines)


def test_there_is_a_file_for_every_verb_and_no_other():
    files = {path.stem for path in (SOURCE / "cli").glob("*.py")} - {"__init__", "progress"}
    assert files == {verb.replace("-", "_") for verb in VERBS}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
from pneumoscope.cli import run_and_exit, cli
run_and_exit(cli, {arguments!r})
print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
    ran = python("-c", code)
    assert (ran.returncode, ran.stderr) == (0, "\n")
    assert ran.stdout.startswith("pneumoscope, version" if "--version" in arguments else "Usage: pneumoscope")


def test_every_verb_says_what_its_options_mean():
    """And `--json` is called the same everywhere."""
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command.name == verb
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in {"accelerator"}:
                assert option.help, f"{verb} {option.name}"
            if option.name == "as_json":
                assert option.opts == ["--json"], verb


def test_python_m_pneumoscope_is_the_same_program():
    ran = python("-m", "pneumoscope", "--version")

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"pneumoscope, version {pneumoscope.__version__}\n", "")


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("pneumoscope")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout == f"pneumoscope, version {pneumoscope.__version__}\n"


# --- exit statuses ---------------------------------------------------------------------------------------------------


def raising(error):
    @click.command()
    @click.option("--debug", is_flag=True)
    def command(debug):
        raise error

    return command


@pytest.mark.parametrize(("name", "status"), [(name, status) for name, (_, status) in drawn().items()])
def test_each_error_of_the_tree_exits_with_its_status(capsys, name, status):
    kind = getattr(errors, name)
    error = SPECIAL[kind]() if kind in SPECIAL else kind("image 'a' is grey", hint="Colour it")

    assert exits(capsys, command=raising(error)) == (status, "", f"error: {error}\n")


def test_what_nobody_foresaw_is_our_fault_and_told_in_words(capsys):
    assert exits(capsys, command=raising(ZeroDivisionError("division by zero"))) == (
        1,
        "",
        "error: ZeroDivisionError: division by zero. This is a fault of ours; show where with: pneumoscope --debug ...\n",
    )


def test_a_verb_that_is_done_does_not_exit_early(capsys):
    run_and_exit(cli, ["models", "--json"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "--bogus"], "No such option"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "quick", "--out", "run"], "Missing option '--data'"),
        (["train", "quick", "--data", "d", "--out", "o", "--devices", "two"], "'two' is not a valid integer range"),
        (["evaluate", "run", "extra", "--data", "d"], "unexpected extra argument"),
        (["--bogus"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_where_help_is(capsys, arguments, words):
    status, out, err = exits(capsys, *arguments)

    assert (status, out) == (2, "")
    assert words in err
    assert "--help" in err


def test_no_verb_shows_the_help_and_exits_with_2(capsys):
    status, _, err = exits(capsys)

    assert status == 2
    assert "Commands:" in err


def test_an_unknown_verb_suggests_the_nearest(capsys):
    assert exits(capsys, "trian") == (2, "", "error: there is no command 'trian'. Did you mean 'train'?\n")


def test_arguments_are_those_of_the_process_where_none_are_given(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pneumoscope", "recipes", "nowhere"])

    with pytest.raises(SystemExit) as stop:
        module.main()

    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no recipe 'nowhere'.")


# --- tracebacks ------------------------------------------------------------------------------------------------------


def test_no_traceback_reaches_a_user_unless_asked_for(capsys):
    status, _, err = exits(capsys, "recipes", "nowhere")
    assert (status, err.count("\n")) == (2, 1)
    assert "Traceback" not in err

    status, out, err = exits(capsys, "--debug", "recipes", "nowhere")
    assert (status, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):")
    assert "read_recipe" in err
    assert err.splitlines()[-1].startswith("error: there is no recipe 'nowhere'.")


# --- what is not installed -------------------------------------------------------------------------------------------

BLOCKED = """
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


def without(extras, *arguments):
    blocked = ",".join(name for extra in extras for name in module._EXTRAS[extra])
    return python("-c", BLOCKED, blocked, *map(str, arguments))


@pytest.mark.parametrize("arguments", [["train", "quick"], ["reproduce"]])
def test_training_without_its_extra_names_it(tmp_path, arguments):
    ran = without(["train"], *arguments, "--data", tmp_path, "--out", tmp_path / "run")

    assert (ran.returncode, ran.stdout) == (2, "")
    # Which of the extra's modules is missed first is the import order's affair.
    assert re.fullmatch(
        r"error: this command needs the extra \[train\] \(no module '(torch|timm|lightning)'\)\."
        r" Install it: pip install 'pneumoscope\[train\]'\n",
        ran.stderr,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["check-data", "{}"], ["compare", "{}"], ["evaluate", "{}", "--data", "{}"]])
def test_statistics_without_their_extra_name_it(tmp_path, arguments):
    out = ["--out", str(tmp_path / "out")] if arguments[0] != "audit" else []
    ran = without(["train", "evaluate"], *(word.format(tmp_path) for word in arguments), *out)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "needs the extra [evaluate]" in ran.stderr
    assert "pip install 'pneumoscope[evaluate]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_what_needs_no_extra_works_without_any(maker, tmp_path):
    images, bundle = maker.images(split="train", normal=40, pneumonia=40), maker.bundle(tmp_path / "bundle")
    for arguments in (
        ["phantom", tmp_path / "drawn", "--train", "4", "--test", "4", "--size", "32"],
        ["split", images, "--out", tmp_path / "manifest.csv"],
        ["recipes", "quick"],
        ["models"],
        ["export", bundle, "--out", tmp_path / "copy"],
        ["fetch", "--help"],
    ):
        ran = without(["train", "evaluate"], *arguments)
        assert (ran.returncode, bool(ran.stdout)) == (0, True), ran.stderr


def test_evaluation_needs_no_training(maker, tmp_path):
    arguments = ["evaluate", maker.run(), "--data", maker.images(), "--ledger", tmp_path / "looks.jsonl"]
    ran = without(["train"], *arguments)

    assert ran.returncode == 0, ran.stderr
    assert "grey on 32 test images" in ran.stdout


def test_a_module_that_no_extra_brings_is_our_fault(capsys):
    error = ModuleNotFoundError("No module named 'pneumoscope.nowhere'", name="pneumoscope.nowhere")
    status, _, err = exits(capsys, command=raising(error))

    assert status == 1
    assert "ModuleNotFoundError: No module named 'pneumoscope.nowhere'" in err


def distribution_of(requirement):
    return requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-")


@pytest.mark.training  # reads what the installed distributions bring
def test_every_module_that_an_extra_brings_is_known():
    """So that whatever is missing first, the extra is named."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    brought = {
        name: {distribution_of(requirement) for requirement in project["optional-dependencies"][name]}
        for name in ("train", "evaluate")
    }
    known = packages_distributions()
    for extra, distributions in brought.items():
        mapped = {known[name][0].lower() for name in module._EXTRAS[extra]}
        assert distributions - {"pneumoscope"} <= mapped


@pytest.mark.training
def test_every_module_imported_is_one_that_something_brings():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    stated = {distribution_of(requirement) for requirement in [*project["dependencies"], *extras]}
    known = packages_distributions()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pneumoscope"}:
                assert known[top][0].lower().replace("_", "-") in stated, f"{path.name} imports {top}"


# --- whoever stops listening, or stops us ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["models", "--json"]])
def test_a_closed_pipe_is_no_news(arguments):
    with started(
        [sys.executable, "-m", "pneumoscope", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_the_first_line_is_enough_for_head():
    ran = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m pneumoscope recipes | head -1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.startswith("alexnet-adam ")
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_exits_with_130(capsys, error):
    status, out, err = exits(capsys, command=raising(error))

    assert (status, out, err.strip()) == (130, "", "stopped")


def test_ctrl_c_reaches_a_verb_at_work(tmp_path):
    """Many phantoms are drawn until the first is there."""
    arguments = ["phantom", tmp_path / "images", "--train", "100000", "--size", "32"]
    with started(
        [sys.executable, "-m", "pneumoscope", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(tmp_path.rglob("*.jpeg")) and process.poll() is None:
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "stopped")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["models"], ["recipes", "--json"]])
def test_a_full_disk_behind_the_output_is_told(arguments):
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "pneumoscope", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 1
    assert "cannot be written: No space left on device" in ran.stderr
