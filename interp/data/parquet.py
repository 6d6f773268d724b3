"""Parquet files as the hub writes them: column `img` {bytes, path} (or `image`), `label`, class names in the metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from interp.types import InputError

Row = tuple[str, bytes, int]  # id, encoded image, label


def read_parquet(path: Path, *, n: int | None = None) -> tuple[Iterator[Row], int, tuple[str, ...]]:
    """The first n rows of a file, lazily, with their count and the class names (empty where the file has none).

    Raises InputError where the file is not parquet or lacks the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error})") from error
    columns = file.schema_arrow.names
    image = next((c for c in ("img", "image") if c in columns), None)
    if image is None or "label" not in columns:
        raise InputError(f"{path} has columns {', '.join(columns)}; expected img (with bytes) and label")
    count = min(n or file.metadata.num_rows, file.metadata.num_rows)
    return _rows(file, image, count), count, _names(file.schema_arrow.metadata or {})


def _rows(file: object, image: str, count: int) -> Iterator[Row]:
    done = 0
    for batch in file.iter_batches(256, columns=[image, "label"]):  # type: ignore[attr-defined]
        for cell, label in zip(batch.column(image).to_pylist(), batch.column("label").to_pylist(), strict=True):
            if done == count:
                return
            if not isinstance(cell, dict) or not cell.get("bytes") or not isinstance(label, int):
                raise InputError(f"row {done} has no image bytes or no integer label; expected {image} = {{bytes}} and label")
            yield str(done), cell["bytes"], label
            done += 1


def _names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(features.get("label", {}).get("names", ()))
    except (ValueError, AttributeError):  # other software's metadata: the file has no names for us
        return ()
