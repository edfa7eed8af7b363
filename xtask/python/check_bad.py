"""Compares a dead-letter table with the generator's list of bad messages. Usage: check_bad.py DATA FILE

FILE: JSON lines with the numbers of split and offset. Ends like truth's check.py.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

SHOWN = 10


def expected(data: Path) -> Counter:
    found = Counter()
    for path in sorted(data.glob("arrivals/part-*.meta.parquet")):
        split = int(path.name.removeprefix("part-").split(".")[0])
        table = pq.read_table(path, columns=["offset", "bad"])
        for offset, bad in zip(table["offset"].to_pylist(), table["bad"].to_pylist()):
            if bad is not None:
                found[split, offset] = 1
    return found


def main(data: str, name: str) -> int:
    want, got = expected(Path(data)), Counter()
    for line in open(name, encoding="utf-8"):
        row = json.loads(line)
        got[int(row["split"]), int(row["offset"])] += 1
    missing, extra = want - got, got - want
    for verdict, rows in (("missing", missing), ("extra", extra)):
        for split, offset in sorted(rows)[:SHOWN]:
            print(f"{verdict}: split={split} offset={offset}")
    print(f"{want.total()} expected, {(want & got).total()} matched, {missing.total()} missing, "
          f"{extra.total()} extra, 0 differ")
    return 1 if missing or extra else 0 if want else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
