"""Simulate `pneumoscope archive score --engine ray` on many machines: time, load of the driver, lost work, requests and cost.

No image is scored. Shards are tasks that take the cores of the machines in turn, as Ray assigns them: a core takes the next shard
when it is free. A shard takes the sum of the times of its images. Machines differ in speed, some much (stragglers), and fail at
random: their shards start again elsewhere. The driver writes one result at a time. Times for each image and sizes for each row
are measurements of `benchmarks/archive.py` and arguments here; prices are assumptions, stated in the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import random
from pathlib import Path
from typing import Any

from pneumoscope.core.files import write_atomically

LIST_PAGE = 1000  # objects in an answer of S3 to a listing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A large archive on many machines.

    Attributes:
        images, shard_size: Images of the archive, and of a shard.
        nodes, cores: Machines, and cores of each.
        image_seconds: Time of one image on one core.
        speed_spread: Standard deviation of the logarithm of the speed of a machine.
        stragglers, straggler_factor: Fraction of machines that are this many times slower.
        node_failures: Failures of one machine per hour; it is replaced after `restart_seconds`.
        write_seconds: Time of the driver to write and enter one result.
        listing_bytes, journal_bytes, row_bytes: Bytes for each image in the listing, for each shard in the journal, and for each
            image in the table.
        core_hour, million_gets, million_lists: Assumed prices.
    """

    images: int = 100_000_000
    shard_size: int = 1000
    nodes: int = 200
    cores: int = 16
    image_seconds: float = 0.13
    speed_spread: float = 0.05
    stragglers: float = 0.02
    straggler_factor: float = 3.0
    node_failures: float = 0.01
    restart_seconds: float = 300.0
    write_seconds: float = 0.029
    listing_bytes: float = 9.3
    journal_bytes: float = 325.0
    row_bytes: float = 154.0
    core_hour: float = 0.04
    million_gets: float = 0.4
    million_lists: float = 5.0


def simulate(scale: Scale, seed: int = 0) -> dict[str, float]:
    """Return the simulated numbers of one run."""
    draw = random.Random(seed)
    speeds = [
        math.exp(draw.gauss(0, scale.speed_spread))
        / (scale.straggler_factor if draw.random() < scale.stragglers else 1.0)
        for _ in range(scale.nodes)
    ]
    failures = [_next_failure(draw, scale, 0.0) for _ in speeds]
    shards = -(-scale.images // scale.shard_size)
    shard_seconds = scale.shard_size * scale.image_seconds
    free = [(0.0, node) for node in range(scale.nodes) for _ in range(scale.cores)]
    heapq.heapify(free)
    waiting, lost, busy = shards, 0, 0.0
    finished: list[float] = []
    last_start = 0.0
    while waiting:
        start, node = heapq.heappop(free)
        if start >= failures[node]:  # it failed while its core was idle
            failures[node] = _next_failure(draw, scale, start)
        end = start + shard_seconds / speeds[node]
        if end > failures[node]:
            busy += failures[node] - start
            lost += 1
            heapq.heappush(free, (failures[node] + scale.restart_seconds, node))
            continue
        waiting -= 1
        busy += end - start
        last_start = start
        finished.append(end)
        heapq.heappush(free, (end, node))
    written = 0.0
    for end in sorted(finished):
        written = max(written, end) + scale.write_seconds
    ideal = scale.images * scale.image_seconds / (scale.nodes * scale.cores)
    return {
        "hours": written / 3600,
        "hours of an ideal cluster": ideal / 3600,
        "efficiency": ideal / written,
        "seconds from the first idle core to the end": written - last_start,
        "shards": shards,
        "tasks per second": shards / written,
        "driver, fraction of time that it writes": shards * scale.write_seconds / written,
        "tasks lost by failures": lost,
        "core hours": busy / 3600,
    }


def _next_failure(draw: random.Random, scale: Scale, now: float) -> float:
    if not scale.node_failures:
        return math.inf
    return now + scale.restart_seconds * (now > 0) + draw.expovariate(scale.node_failures / 3600)


def sizes(scale: Scale, simulated: dict[str, float]) -> dict[str, float]:
    """Return sizes, requests and cost."""
    shards = simulated["shards"]
    lists, gets = scale.images / LIST_PAGE, 2 * scale.images  # the size is asked for before an object is read
    cost = (
        scale.nodes * scale.cores * simulated["hours"] * scale.core_hour
        + (gets * scale.million_gets + lists * scale.million_lists) / 1e6
    )
    return {
        "listing, GB": scale.images * scale.listing_bytes / 1e9,
        "journal, MB": shards * scale.journal_bytes / 1e6,
        "predictions, GB": scale.images * scale.row_bytes / 1e9,
        "names of known images in memory of the driver, GB": scale.images * 24 / 1e9,
        "LIST requests, million": lists / 1e6,
        "HEAD and GET requests, million": gets / 1e6,
        "cost per million images": cost / (scale.images / 1e6),
    }


def main() -> None:
    """Simulate several shard sizes, and write scale.json and scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Scale):
        flag = "--" + field.name.replace("_", "-")
        kind = int if isinstance(field.default, int) else float
        if field.name != "shard_size":
            parser.add_argument(flag, type=kind, default=field.default)
    parser.add_argument("--shard-size", type=int, nargs="+", default=[256, 1000, 4000, 16_000])
    parser.add_argument("--out", type=Path, default=Path("results/archive"))
    options = vars(parser.parse_args())
    out, shard_sizes = options.pop("out"), options.pop("shard_size")
    columns = {}
    for shard_size in shard_sizes:
        scale = Scale(**options, shard_size=shard_size)
        simulated = simulate(scale)
        columns[str(shard_size)] = simulated | sizes(scale, simulated)
    result: dict[str, Any] = {"assumptions": options, "by shard size": columns}
    write_atomically(out / "scale.json", json.dumps(result, indent=1) + "\n")
    write_atomically(out / "scale.md", markdown(result))
    print(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    columns = result["by shard size"]
    assumptions = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in result["assumptions"].items())
    lines = [
        "# Scale of archives, simulated",
        "",
        f"No image was scored. Assumptions: {assumptions}. Prices are in one currency, per core hour and per million requests.",
        "",
        f"| | {' | '.join(f'{int(size):,} images per shard' for size in columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | {' | '.join(f'{column[name]:,.3g}' for column in columns.values())} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
