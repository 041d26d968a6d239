"""Row groups far larger than what reading them may take."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHILD = """
import pathlib, sys
from rb_jax.data.importers import magicbrush, tables

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

root = pathlib.Path(sys.argv[1])
tables.table_pieces(root, [], magicbrush.COLUMNS, ())
import pyarrow.parquet
before, read = peak(), 0
for piece in tables.table_pieces(root, tables.all_tables(root), magicbrush.COLUMNS, ()):
    for number, row in tables.table_rows(root, piece, magicbrush.COLUMNS):
        read += sum(len(row[key]["bytes"]) for key in ("source", "mask", "target"))
        assert row["source"]["bytes"][:2] == number.to_bytes(2, "big"), number
print(read >> 20, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("options", "share"), [({"write_batch_size": 4}, 0.4), ({}, 0.9)])
def test_a_row_group_is_never_in_memory(tmp_path, options, share):
    """Pages of a few rows, or, as most writers do, one page a column."""
    count, size = 300, 140_000
    rng = np.random.default_rng(0)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"img_id": ["1"] * count, "turn_index": [1] * count, "instruction": ["x"] * count}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for name in ("source_img", "mask_img", "target_img"):
        cells = [n.to_bytes(2, "big") + rng.bytes(size) for n in range(count)]
        arrays[name] = pa.array([{"bytes": cell, "path": None} for cell in cells], image)
    table = pa.table(arrays)
    pq.write_table(
        table, tmp_path / "train.parquet", row_group_size=count, use_dictionary=False, **options
    )
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, check=True
    )
    read, grown = map(int, done.stdout.split())
    assert read == 3 * count * size >> 20
    assert grown < share * read
