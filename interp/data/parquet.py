"""Parquet files as the hub writes them: column `img` {bytes, path} (or `image`), `label`, class names in the metadata.

Some also say where the object is: `trimap` (an encoded image) or `box_xyxy` (four numbers); `interp.data.masks` reads those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from interp.types import InputError

Row = tuple[str, bytes, int]  # id, encoded image, label
IMAGE = ("img", "image")
MASK = ("trimap", "box_xyxy")  # the exact one first


def read_parquet(path: Path, *, n: int | None = None) -> tuple[Iterator[Row], int, tuple[str, ...]]:
    """The first n rows of a file, lazily, with their count and the class names (empty where the file has none).

    Raises InputError where the file is not parquet or lacks the columns.
    """
    file = _open(path)
    columns = file.schema_arrow.names
    image = next((c for c in IMAGE if c in columns), None)
    if image is None or "label" not in columns:
        raise InputError(f"{path} has columns {', '.join(columns)}; expected img (with bytes) and label")
    count = min(n or file.metadata.num_rows, file.metadata.num_rows)
    return _rows(file, image, count), count, _names(file.schema_arrow.metadata or {})


def mask_cells(path: Path, *, n: int | None = None) -> tuple[str, Iterator[tuple[bytes, Any]]] | None:
    """The column of masks of a file `read_parquet` reads, and for each of its first n rows the encoded image and that cell.

    None where the file has no such column.
    """
    file = _open(path)
    columns = file.schema_arrow.names
    mask = next((c for c in MASK if c in columns), None)
    image = next(c for c in IMAGE if c in columns)
    return None if mask is None else (mask, ((cell["bytes"], m) for cell, m in islice(_cells(file, image, mask), n)))


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error})") from error


def _cells(file: Any, *columns: str) -> Iterator[tuple[Any, ...]]:
    for batch in file.iter_batches(256, columns=list(columns)):
        yield from zip(*(batch.column(c).to_pylist() for c in columns), strict=True)


def _rows(file: Any, image: str, count: int) -> Iterator[Row]:
    for i, (cell, label) in enumerate(islice(_cells(file, image, "label"), count)):
        if not isinstance(cell, dict) or not cell.get("bytes") or not isinstance(label, int):
            raise InputError(f"row {i} has no image bytes or no integer label; expected {image} = {{bytes}} and label")
        yield str(i), cell["bytes"], label


def _names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(features.get("label", {}).get("names", ()))
    except (ValueError, AttributeError):  # other software's metadata: the file has no names for us
        return ()
