"""Copies a result, with the number of the split in place of its name. Usage: number_splits.py TO FILE...

A split is called by file path, topic filter or number; its last digits are the partition's number.
"""

import csv
import json
import re
import sys
from pathlib import Path


def number(split) -> int:
    return int(re.search(r"([0-9]+)[^0-9]*$", str(split)).group(1))


def rows_of(path: Path) -> list[dict]:
    match path.suffix:
        case ".jsonl" | ".json":
            return [json.loads(line) for line in path.open(encoding="utf-8") if line.strip()]
        case ".csv":
            return list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        case ".parquet":
            import pyarrow.parquet
            return pyarrow.parquet.read_table(path, partitioning=None).to_pylist()
    raise SystemExit(f"{path}: neither JSON lines, CSV nor Parquet")


def main(to: str, *files: str):
    with open(to, "w", encoding="utf-8") as out:
        for name in files:
            for row in rows_of(Path(name)):
                row["split"] = number(row["split"])
                out.write(json.dumps(row, default=lambda v: v.isoformat()) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
