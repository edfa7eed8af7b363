"""Prints how many sound readings the generator stamped far ahead of their time. Usage: count_future.py DATA"""

import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(data: str):
    count = 0
    for path in Path(data).glob("arrivals/part-*.meta.parquet"):
        table = pq.read_table(path, columns=["bad", "future"])
        pairs = zip(table["bad"].to_pylist(), table["future"].to_pylist())
        count += sum(future and bad is None for bad, future in pairs)
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
