"""Render the output of `pneumoscope predict` for README and docs: docs/images/predict.svg and docs/images/heatmap.png.

It scores drawn images with a network that was trained on drawn images, as the demo leaves both: `make demo`, then

    .venv/bin/python docs/terminal_image.py --images demo/images/test --model demo/quick --out docs/images
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pty
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

_IMAGES = 6
_COLUMNS = 116
_COMMAND = ["pneumoscope", "predict", "images", "--model", "quick", "--heatmaps", "heatmaps"]


def main() -> None:
    """Copy a few images to a folder, score them in a terminal, and write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, file in enumerate(files[:: max(1, len(files) // _IMAGES)][:_IMAGES], start=1):
            shutil.copy(file, folder / "images" / f"{number}{file.suffix}")
        Image.new("L", (512, 512)).save(folder / "images" / "blank.png")
        (folder / "quick").symlink_to(options.model.resolve())
        (options.out / "predict.svg").write_text(render(run_in_terminal(_COMMAND, folder)), encoding="utf-8")
        shutil.copy(sorted((folder / "heatmaps").iterdir())[-1], options.out / "heatmap.png")


def run_in_terminal(command: list[str], folder: Path) -> str:
    """Return what a command prints on a terminal, with its escape sequences.

    Raises:
        CalledProcessError: The command failed.
    """
    reader, writer = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(_COLUMNS)}
    with subprocess.Popen(command, cwd=folder, stdout=writer, stderr=writer, env=environment) as process:
        os.close(writer)
        printed = b""
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while chunk := os.read(reader, 4096):
                printed += chunk
        os.close(reader)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed)
    return printed.decode().replace("\r\n", "\n")


def render(printed: str) -> str:
    """Return terminal output as an SVG that loads no font from another host."""
    console = Console(width=_COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ {' '.join(_COMMAND)}\n{printed.rstrip()}"))
    svg = console.export_svg(title="pneumoscope", unique_id="predict")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    main()
