"""Run pneumoscope with images that take some time to read: python -m tests.archive.slow_driver SECONDS archive score ..."""

from __future__ import annotations

import dataclasses
import sys
import time

from pneumoscope.archive import sources
from pneumoscope.archive.readers import LocalReader
from pneumoscope.cli import main


@dataclasses.dataclass(frozen=True, slots=True)
class SlowReader(LocalReader):
    """A reader that takes some seconds for each image, also on Ray."""

    seconds: float

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        time.sleep(self.seconds)
        return LocalReader.read(self, name)


def slow_down(seconds: float) -> None:
    """Replace the reader of folders in this process."""
    open_source = sources.open_source

    def open_slow_source(location: str, **options: str) -> sources.Source:
        opened = open_source(location, **options)
        return dataclasses.replace(opened, reader=SlowReader(opened.reader.root, seconds))

    sources.open_source = open_slow_source


if __name__ == "__main__":
    # The class of this module, by its name, which the workers of Ray import.
    from tests.archive import slow_driver

    slow_driver.slow_down(float(sys.argv.pop(1)))
    main()
