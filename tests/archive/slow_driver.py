"""Score an archive whose images take some time to read: python -m tests.archive.slow_driver SOURCE OUT BUNDLE ADDRESS."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from pneumoscope.archive.readers import LocalReader
from pneumoscope.archive.score import score_archive
from pneumoscope.archive.sources import open_source

SECONDS = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class SlowReader(LocalReader):
    """A reader that takes `SECONDS` for each image."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        time.sleep(SECONDS)
        return LocalReader.read(self, name)


def main(source: str, out: str, bundle: str, address: str) -> None:
    """Score on a cluster, in shards of four, with heatmaps."""
    opened = open_source(source)
    slow = dataclasses.replace(opened, reader=SlowReader(opened.reader.root))
    model = {"bundle": Path(bundle)}
    scored = score_archive(slow, Path(out), model=model, shard_size=4, heatmaps=True, engine="ray", address=address)
    print(f"{scored.done} scored, {scored.failed} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
