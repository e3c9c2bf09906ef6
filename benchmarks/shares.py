"""Record what `gossamer doctor --speed` compares with: each operation's share of this processor's roofline.

    python benchmarks/shares.py [--rounds 5] [--json FILE]

The medians of some rounds go to src/gossamer/certify/shares.json under the processor's vector unit, in place of what
was there for it. It is best done while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import environment  # noqa: F401 (before PyTorch)
import torch

from gossamer import device as devices
from gossamer.certify.doctor import SHARES, THREADS, measure_operations, share_name


def measured_shares(rounds: int) -> dict[str, float]:
    """Return the median share of the roofline by operation and implementation."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for row in measure_operations(torch.device("cpu"), torch.float32):
            if row["share"] is not None:
                found.setdefault(share_name(row["operation"], row["implementation"]), []).append(row["share"])
    return {name: round(statistics.median(shares), 3) for name, shares in found.items()}


def keep(shares: dict[str, float], file: Path) -> dict[str, Any]:
    """Write the shares under this processor's vector unit, and return the entry."""
    processor = devices.processor()
    entry = {
        "processor": processor.key(min(THREADS, torch.get_num_threads())),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "shares": shares,
    }
    recorded = json.loads(file.read_text(encoding="utf-8")) | {processor.vectors: entry}
    file.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return entry


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the medians of")
    parser.add_argument("--json", type=Path, default=SHARES, help="file to write them to")
    arguments = parser.parse_args()
    devices.prepare_process()
    entry = keep(measured_shares(arguments.rounds), arguments.json)
    print(json.dumps(entry, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
