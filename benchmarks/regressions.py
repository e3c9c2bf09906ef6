"""Has anything become slower since it was last recorded on this kind of processor?

    python benchmarks/regressions.py [--records bench] [--recorded benchmarks/recorded.json] [--record]
    python benchmarks/regressions.py --table                    what is recorded, with with a column for each processor

The ratios in the records that the other benchmarks wrote are compared with those of recorded.json; higher is better. A
ratio is gossamer to its peer, or to the machine's own rates, measured in the same run. Times are never compared, for
they belong to a machine. Ratios are compared only within the same kind of processor (maker, family, model, widest
vector unit, threads), the same PyTorch and the same version of the peer, because a ratio changes with each of them.

The exit status is 0, also where nothing alike is recorded; 1 if a ratio fell by more than the tolerance or is missing;
2 if there are no records. --record stores the new ratios as those of this processor; those of others stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import decode
import long_context
import operations
import train_step
from measure import PEERS, table

TOLERANCE = 0.25  # runs of the same code on a machine that others use differ by up to this

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).with_name("recorded.json")
ALIKE = ("torch", "peers")  # what makes ratios comparable, beside the processor

# For each record's file: what its ratios are.
RATIOS: dict[str, Callable[[Any], dict[str, float]]] = {
    "train_step.json": lambda records: {
        f"{record['size']}: {name}": value for record in records for name, value in train_step.ratios(record).items()
    },
    "operations.json": operations.ratios,
    "long_context.json": long_context.ratios,
    "decode.json": decode.ratios,
}

Row = tuple[str, float | None, float | None, str]


def found_ratios(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a folder by processor: device, torch, peers, date, and ratios named after the benchmark.

    Raises:
        ValueError: a record does not say on which processor it was made.
    """
    found: dict[str, dict[str, Any]] = {}
    for file, of in RATIOS.items():
        if not (folder / file).is_file():
            continue
        record = json.loads((folder / file).read_text())
        machine = (record[0] if isinstance(record, list) else record)["machine"]
        if "processor" not in machine:
            raise ValueError(f"{folder / file} does not say on which processor it was made; make it again")
        own = found.setdefault(machine["processor"], {"ratios": {}})
        own |= {key: machine[key] for key in ("device", *ALIKE, "date")}
        own["ratios"] |= {
            f"{file.removesuffix('.json')}, {name}": round(value, 3) for name, value in of(record).items()
        }
    return found


def peer_of(ratio: str) -> str:
    """Return the peer that the name of a ratio names, or an empty text."""
    return next((peer for peer in PEERS if peer in ratio), "")


def compare(before: Mapping[str, Any], now: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[Row]:
    """Return for each ratio its name, what was recorded, what was found and a verdict.

    The verdict is "", "new", "FELL", "MISSING", or what is not alike, so that the two cannot be compared.

    Args:
        before: the recorded measurement on one kind of processor: torch, peers, ratios
        now: the new one
        tolerance: the share that a ratio may fall by
    """
    rows: list[Row] = []
    for name in dict.fromkeys([*before["ratios"], *now["ratios"]]):
        then, here = before["ratios"].get(name), now["ratios"].get(name)
        if here is None:
            verdict = "MISSING"
        elif then is None:
            verdict = "new"
        else:
            verdict = _unlike(peer_of(name), before, now) or ("" if here >= then * (1 - tolerance) else "FELL")
        rows.append((name, then, here, verdict))
    return rows


def _unlike(peer: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if before["torch"] != now["torch"]:
        return f"recorded with torch {before['torch']}"
    then, here = (measured["peers"].get(peer, "?") if peer else "" for measured in (before, now))
    return f"recorded with {peer} {then}" if then != here else ""


def report(rows: list[Row]) -> str:
    """Print the comparison."""
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


def report_recorded(recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """Print what is recorded: a row per ratio, a column per processor, and on what each was measured."""
    names = dict.fromkeys(name for one in recorded.values() for name in one["ratios"])
    rows = [
        (name, *(f"{one['ratios'][name]:.2f}" if name in one["ratios"] else "–" for one in recorded.values()))
        for name in names
    ]
    measured = []
    for key, one in recorded.items():
        versions = [f"torch {one['torch']}", *map(" ".join, one["peers"].items())]
        measured.append(f"{key}: {', '.join([one['device'], one['date'], *versions])}")
    return f"{table(('ratio, the higher the better', *recorded), rows)}\n\n" + "\n".join(measured)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, default=ROOT / "bench", help="folder of the records")
    parser.add_argument("--recorded", type=Path, default=RECORDED)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share that a ratio may fall by")
    parser.add_argument("--record", action="store_true", help="write what was found to the file of recorded ratios")
    parser.add_argument("--table", action="store_true", help="print what is recorded, with a column for each processor")
    arguments = parser.parse_args()
    recorded = json.loads(arguments.recorded.read_text()) if arguments.recorded.is_file() else {}
    if arguments.table:
        print(report_recorded(recorded))
        return 0
    try:
        found = found_ratios(arguments.records)
    except ValueError as error:
        print(f"regressions.py: {error}", file=sys.stderr)
        return 2
    if not found:
        print(f"regressions.py: no records in {arguments.records}; `make bench` writes them", file=sys.stderr)
        return 2
    if arguments.record:
        arguments.recorded.write_text(json.dumps(recorded | found, indent=1, ensure_ascii=False) + "\n")
        print(f"recorded {_counted(found)} in {arguments.recorded}")
        return 0
    fell: list[str] = []
    for key, now in found.items():
        if key not in recorded:
            others = "; ".join(recorded) or "none"
            print(f"nothing is recorded for {key} yet (for others: {others}); --record stores {_counted({key: now})}")
            print(f"\n{report([(name, None, value, 'new') for name, value in now['ratios'].items()])}\n")
            continue
        before = recorded[key]
        rows = compare(before, now, arguments.tolerance)
        print(f"### {key}, compared with what was recorded on {before['date']}\n\n{report(rows)}\n")
        fell += [name for name, _, _, verdict in rows if verdict in ("FELL", "MISSING")]
    print(f"fell by more than {arguments.tolerance:.0%} or is missing: {'; '.join(fell) if fell else 'nothing'}")
    return int(bool(fell))


def _counted(found: Mapping[str, Any]) -> str:
    return " and ".join(f"{len(one['ratios'])} ratios of {key}" for key, one in found.items())


if __name__ == "__main__":
    sys.exit(main())
