"""Sizes in Parquet files: pages are found as pyarrow writes them, and a footer that lies is held against them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.hostile_data import forged

from upcycle.core.errors import UserError
from upcycle.data import load
from upcycle.data.parquet_pages import AT_ONCE, require_honest, unfolded, values


def written(table: pa.Table, **options: Any) -> bytes:
    pq.write_table(table, file := io.BytesIO(), **options)
    return file.getvalue()


def opened(content: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(io.BytesIO(content))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_come_to_what_an_honest_footer_says(compression: str, version: str, dictionary: bool) -> None:
    chance = np.random.default_rng(0)
    rows = [{"bytes": chance.bytes(3000), "path": f"{i}.png"} for i in range(700)]
    table = pa.table({"image": rows, "label": pa.array([[i % 7] for i in range(700)]), "other": list(range(700))})
    content = written(
        table,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=2**16,
        row_group_size=300,
        write_page_checksum=True,
    )
    metadata = opened(content).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    said = sum(g.column(i).total_uncompressed_size for g in groups for i in range(3))  # with the headers of pages
    found = unfolded(content, metadata, ("image", "label"))
    assert said - 200 * 100 < found.total < said and (found.dictionary > 0) == dictionary
    assert require_honest(content, metadata, ("image", "label"), "x") <= AT_ONCE


def test_one_value_for_all_rows_is_read_some_rows_at_a_time() -> None:
    large = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200, np.int8)), pa.array([bytes(2**21)], pa.binary()))
    content = written(pa.table({"image": large, "label": [0, 1] * 100}), compression="none", store_schema=False)
    file = opened(content)
    at_once = require_honest(content, file.metadata, ("image",), "x")
    assert 4 <= at_once <= 8  # 16 MiB
    most = 0
    with pytest.raises(UserError, match="'image' of x unfolds to more than"):
        for batch in values(file, "image", at_once, len(content), "x"):
            most = max(most, batch.nbytes)
    assert most <= 2**24 + 2**16


def test_a_footer_that_makes_pages_small_is_not_believed(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([bytes(2**27)] + [b"x"] * 9, pa.binary()), "label": [0, 1] * 5})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    forged(path, pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size, 1000)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 1000
    with pytest.raises(UserError, match="of them unpacked; no images shrink so far"):
        load(tmp_path)


@pytest.mark.parametrize("change", [b"\xff" * 40, b"\x00" * 40, b"\x19\xf9" * 20, b"\x15\x04\x15\x80\x80\x80\x80\x01"])
def test_headers_of_pages_that_are_none_are_named(change: bytes, tmp_path: Path) -> None:
    content = bytearray(written(pa.table({"image": [b"x" * 50] * 9, "label": [0] * 9}), compression="none"))
    content[4 : 4 + len(change)] = change
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet is not a whole Parquet file: (a page|the header|the pages)"):
        load(tmp_path)
