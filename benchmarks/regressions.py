"""Has anything fallen behind since it was last recorded?

    python benchmarks/regressions.py [--records bench] [--recorded benchmarks/recorded.json] [--record]

Compares the ratios in the records that the other benchmarks wrote with those of recorded.json, the higher the better:
gossamer to its peer, or to the machine's own rates, measured in the same run. Never times, which belong to a machine.
Exit status: 0, 1 if a ratio fell by more than the tolerance or is missing, 2 without records. --record keeps the new
ratios instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import decode
import long_context
import operations
import train_step
from measure import table

TOLERANCE = 0.25  # runs of the same code on a machine that others use differ by up to this

ROOT = Path(__file__).parents[1]
# For each record's file: what its ratios are.
RATIOS: dict[str, Callable[[Any], dict[str, float]]] = {
    "train_step.json": lambda records: {
        f"{record['size']}: {name}": value for record in records for name, value in train_step.ratios(record).items()
    },
    "operations.json": operations.ratios,
    "long_context.json": long_context.ratios,
    "decode.json": decode.ratios,
}


def found_ratios(folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """The ratios of all records in a folder, named after the benchmark, and what they were measured on."""
    ratios: dict[str, float] = {}
    where: dict[str, str] = {}
    for file, of in RATIOS.items():
        if not (folder / file).is_file():
            continue
        record = json.loads((folder / file).read_text())
        ratios |= {f"{file.removesuffix('.json')}, {name}": round(value, 3) for name, value in of(record).items()}
        machine = (record[0] if isinstance(record, list) else record)["machine"]
        where |= {key: machine[key] for key in ("device", "torch", "date")}
    return ratios, where


def compare(
    recorded: Mapping[str, float], found: Mapping[str, float], tolerance: float = TOLERANCE
) -> list[tuple[str, float | None, float | None, str]]:
    """For each ratio: its name, what was recorded, what was found and a verdict: "", "new", "FELL" or "MISSING"."""
    rows: list[tuple[str, float | None, float | None, str]] = []
    for name in dict.fromkeys([*recorded, *found]):
        before, now = recorded.get(name), found.get(name)
        if now is None:
            verdict = "MISSING"
        elif before is None:
            verdict = "new"
        else:
            verdict = "" if now >= before * (1 - tolerance) else "FELL"
        rows.append((name, before, now, verdict))
    return rows


def report(rows: list[tuple[str, float | None, float | None, str]]) -> str:
    cells = [
        (
            name,
            "–" if before is None else f"{before:.2f}",
            "–" if now is None else f"{now:.2f}",
            f"{now / before - 1:+.0%}" if before and now is not None else "",
            verdict,
        )
        for name, before, now, verdict in rows
    ]
    return table(("ratio, the higher the better", "recorded", "now", "", ""), cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, default=ROOT / "bench", help="folder of the records")
    parser.add_argument("--recorded", type=Path, default=Path(__file__).with_name("recorded.json"))
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="fall that is taken for noise")
    parser.add_argument("--record", action="store_true", help="write what was found to the file of recorded ratios")
    arguments = parser.parse_args()
    found, where = found_ratios(arguments.records)
    if not found:
        print(f"regressions.py: no records in {arguments.records}; `make bench` writes them", file=sys.stderr)
        return 2
    if arguments.record:
        kept = where | {"transformers": metadata.version("transformers"), "ratios": found}
        arguments.recorded.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        print(f"recorded {len(found)} ratios in {arguments.recorded}")
        return 0
    before = json.loads(arguments.recorded.read_text()) if arguments.recorded.is_file() else {"ratios": {}}
    rows = compare(before["ratios"], found, arguments.tolerance)
    print(f"### Compared with what was recorded\n\n{report(rows)}\n")
    if "device" in before:
        print(f"recorded on {before['device']}, torch {before['torch']}, {before['date']}; now {where['device']}")
    fell = [name for name, _, _, verdict in rows if verdict in ("FELL", "MISSING")]
    print(f"fell by more than {arguments.tolerance:.0%} or is missing: {'; '.join(fell) if fell else 'nothing'}")
    return int(bool(fell))


if __name__ == "__main__":
    sys.exit(main())
