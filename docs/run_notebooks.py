"""Execute the notebooks in docs/notebooks/ and write them with their outputs.

    .venv/bin/python docs/run_notebooks.py

The outputs state no path, time or version: a notebook works in an empty folder and prints relative paths, and standard error is
left out. Results of networks differ between machines, at least in their last digits; such cells have the tag `varies`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).with_name("notebooks")
_SECONDS = 240  # of a cell
_CLEARED = re.compile(r".*\x1b\[2K", re.DOTALL)
_ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # for `!pneumoscope`
    "OMP_NUM_THREADS": "1",  # the same sums in the same order
    "COLUMNS": "100",
    "NO_COLOR": "1",
}


def main() -> None:
    """Execute the notebooks that are given, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(NOTEBOOKS.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        nbformat.write(execute(nbformat.read(path, as_version=4)), path)
        print(path)


def execute(notebook: Any) -> Any:
    """Return the notebook with its outputs.

    Raises:
        CellExecutionError: A cell raised an error.
    """
    metadata = notebook.metadata.copy()
    os.environ.update(_ENVIRONMENT)
    NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", record_timing=False).execute()
    notebook.metadata = metadata  # the kernel adds its version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _clean(cell.outputs)
    return notebook


def _clean(outputs: list[Any]) -> list[Any]:
    """Return outputs without standard error, and without the progress bars that a terminal clears."""
    streams = [output for output in outputs if output.output_type == "stream"]
    printed = "".join(output.text for output in streams if output.name == "stdout")
    shown = [nbformat.v4.new_output("stream", text=_CLEARED.sub("", printed))] if printed else []
    return [*shown, *(output for output in outputs if output not in streams)]


if __name__ == "__main__":
    main()
