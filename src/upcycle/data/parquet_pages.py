"""Sizes in a Parquet file, held against what it has: rows and bytes of its footer, and pages, whatever the footer says.

A footer is what whoever wrote the file says of it, and libraries take memory by the headers of its pages. Each page has
one, with its own size packed and unpacked, in Thrift's compact protocol (Apache Parquet's format, ``PageHeader`` in
``parquet.thrift``: 1 type, 2 uncompressed_page_size, 3 compressed_page_size).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from upcycle.core.errors import UserError, require
from upcycle.core.limits import SMALL, most_from
from upcycle.data.decode import readable
from upcycle.data.memory import require_memory

AT_ONCE = 1024  # rows in memory at a time, while decoding
MOST_ROWS = 100_000  # of a file, however small: a dictionary may hold one image for all
LEAST_BYTES = 16  # of a row beyond these
ROW = 64  # bytes of memory for a row beside its image

_DICTIONARY = 2  # the type of a page of values that others count
_STOP, _BYTE, _DOUBLE, _BINARY, _STRUCT = 0, 3, 7, 8, 12
_BOOLS, _INTS, _LISTS = (1, 2), (4, 5, 6), (9, 10)
_DEPTH = 8  # of structures in a header


def require_honest(content: Any, metadata: Any, columns: tuple[str, ...], where: str) -> int:
    """Hold what a Parquet file announces against its bytes and against the memory of this machine.

    Args:
        content: the file, as anything of bytes that can be cut.
        metadata: of the file, as pyarrow has it.
        columns: names of those that will be read.
        where: how errors call the file.

    Returns:
        rows that may be in memory at a time: one value can stand in all of them, and is stored once.

    Raises:
        UserError: more rows or bytes than a file of its size holds, or pages that do not lie in it.
    """
    size, rows = len(content), metadata.num_rows
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    announced = sum(max(0, g.column(i).total_uncompressed_size) for g in groups for i in range(g.num_columns))
    says = f"{readable(where)} has {size:,} bytes and announces"
    require(rows <= max(MOST_ROWS, size // LEAST_BYTES), f"{says} {rows:,} rows, more than there can be images in it.")
    try:
        found = unfolded(content, metadata, columns)
    except ValueError as error:
        raise UserError(f"{readable(where)} is not a whole Parquet file: {error}.") from error
    announced = max(announced, found.total)
    require(announced <= most_from(size), f"{says} {announced:,} of them unpacked; no images shrink so far.")
    require_memory(ROW * rows, f"The {rows:,} rows of {readable(where)}")
    return max(1, min(AT_ONCE, SMALL // 4 // max(1, found.dictionary)))  # they are copied, and copied again


def values(file: Any, column: str, at_once: int, size: int, where: str) -> Iterator[Any]:
    """The values of a column, some rows at a time.

    Args:
        file: as pyarrow opens it.
        column: its name.
        at_once: rows, see :func:`require_honest`.
        size: bytes of the file.
        where: how errors call it.

    Raises:
        UserError: they are more bytes than a file of its size unfolds to, or not as many rows as it announces.
    """
    total = rows = 0
    for batch in file.iter_batches(at_once, columns=[column]):
        total, rows = total + batch.column(0).nbytes, rows + len(batch)
        require(
            total <= most_from(size),
            f"The column '{column}' of {readable(where)} unfolds to more than {most_from(size):,} bytes, and the file "
            f"has {size:,}.",
        )
        yield batch.column(0)
    announced = file.metadata.num_rows
    require(rows == announced, f"{readable(where)} is damaged: it announces {announced:,} rows and holds {rows:,}.")


@dataclass(frozen=True)
class Unfolded:
    """Sizes of columns, by the headers of their pages.

    Args:
        total: bytes of all pages, unpacked.
        dictionary: bytes of the largest page of values that rows name by number; no value in it is larger.
    """

    total: int
    dictionary: int


def unfolded(content: Any, metadata: Any, columns: tuple[str, ...]) -> Unfolded:
    """What some columns of a Parquet file unfold to.

    Args:
        content: the file, as anything of bytes that can be cut.
        metadata: of the file, as pyarrow has it.
        columns: their names; all that lies in one of them counts.

    Raises:
        ValueError: a page that does not lie in the file, or whose header is none.
    """
    total = dictionary = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for chunk in (group.column(j) for j in range(group.num_columns) if group.num_rows):
            if chunk.path_in_schema.split(".")[0] not in columns:
                continue
            for kind, size in _pages(content, chunk):
                total += size
                dictionary = max(dictionary, size if kind == _DICTIONARY else 0)
    return Unfolded(total, dictionary)


def _pages(content: Any, chunk: Any) -> Iterator[tuple[int, int]]:
    """The type of each page of a column and its bytes, unpacked."""
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    if not 0 <= place <= end <= len(content):
        raise ValueError(f"the pages of the column {chunk.path_in_schema} do not lie in it")
    while place < end:
        header = _Header(content, place)
        kind, unpacked, packed = (header.numbers.get(field, -1) for field in (1, 2, 3))
        if min(kind, unpacked, packed) < 0:
            raise ValueError(f"a page of the column {chunk.path_in_schema} has no size")
        yield kind, unpacked
        place = header.end + packed


class _Header:
    """The whole numbers of a structure in Thrift's compact protocol, by field; what else it holds is passed over.

    Args:
        content: see :func:`unfolded`.
        place: where it begins.
    """

    def __init__(self, content: Any, place: int) -> None:
        self._content, self.end, self.numbers = content, place, dict[int, int]()
        try:
            self._structure(self.numbers, 0)
        except IndexError:
            raise ValueError("the header of a page is cut off") from None

    def _structure(self, numbers: dict[int, int] | None, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError("the header of a page is nested too deep")
        field = 0
        while (head := self._byte()) & 15 != _STOP:
            step, kind = divmod(head, 16)
            field = field + step if step else self._signed()
            if kind in _INTS:
                value = self._signed()
                if numbers is not None:
                    numbers[field] = value
            elif kind not in _BOOLS:  # which stand in the head itself
                self._pass(kind, depth)

    def _pass(self, kind: int, depth: int) -> None:
        if kind in (_BYTE, *_BOOLS):  # of a list, where each is a byte
            self.end += 1
        elif kind in _INTS:
            self._number()
        elif kind == _DOUBLE:
            self.end += 8
        elif kind == _BINARY:
            length = self._number()
            self.end += length
        elif kind == _STRUCT:
            self._structure(None, depth + 1)
        elif kind in _LISTS and depth <= _DEPTH:
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._number()
            if count > len(self._content):
                raise ValueError("the header of a page holds more than the file")
            for _ in range(count):
                self._pass(head & 15, depth + 1)
        else:  # a map too: no header has one
            raise ValueError("the header of a page holds what no page has")

    def _byte(self) -> int:
        self.end += 1
        return int(self._content[self.end - 1])

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("the header of a page has a number that is too long")

    def _signed(self) -> int:
        value = self._number()
        return (value >> 1) ^ -(value & 1)
