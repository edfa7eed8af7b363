"""Prints the check sum of a bench's Parquet result, by the reference's own formula.

Usage: bench_check.py SHARED_BENCH WORK FOLDER
"""

import sys

import duckdb


def main(bench: str, work: str, folder: str):
    sys.dont_write_bytecode = True
    sys.path.insert(0, bench)
    from duckdb_ref import CHECKS
    result = f"read_parquet('{folder}/**/*.parquet')"
    query = f"select count(*), {CHECKS[work[:2]]} from {result}"
    [(rows, check)] = duckdb.connect().execute(query).fetchall()
    print(f"out={rows} chk={check}")


if __name__ == "__main__":
    main(*sys.argv[1:])
