"""Result: arrays with named dimensions and measures with their uncertainty, saved with all that made them.

One netCDF file per result under a content key of (kind, parameters, inputs, schema): the same work is found again, and a
file is complete or absent, because it is written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA = 1  # raise when the meaning of stored arrays changes: old files are then refused
REVISIONS = {
    "attention": 4,
    "attention_heads": 3,
    "attention_layers": 3,
    "attention_queries": 3,
    "attention_shift": 3,
    "compare": 3,
    "sweep": 2,
    "synthesis": 2,
}
"""Raised when an analysis finds something else, so that old files are not reused."""


@dataclass(frozen=True)
class Result:
    """What one analysis found.

    kind: name of the analysis. data: arrays with named dimensions; a variable with the attribute `better` is a measure
    (attributes unit, better: higher/lower/none, n; its interval in the variables NAME_low and NAME_high, and where n differs from
    value to value that in NAME_n). Every `unit` is there as `units` too, by which xarray labels its own plots. params: what was
    asked. inputs: digests of models and images. made: versions, device, seconds.
    """

    kind: str
    title: str
    data: xr.Dataset
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.data.copy()
        for v in data.variables.values():
            if unit := v.attrs.get("unit"):
                v.attrs["units"] = unit
        object.__setattr__(self, "data", data)

    @classmethod
    def of(cls, kind: str, title: str, data: xr.Dataset, *, params: Any, models: Any, batch: Any, started: float) -> Result:
        """A result with its provenance: params a dataclass, models and batch anything with a `digest`, started in seconds."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        versions = {name: version(name) for name in ("numpy", "robust-interp", "timm", "torch")}
        made = {"versions": versions, "device": device, "seconds": round(time.perf_counter() - started, 2)}
        return cls(kind, title, data, as_plain(params), inputs_of(models, batch), made)

    @property
    def key(self) -> str:
        """Content key: equal for equal kind, parameters, inputs and schema."""
        return content_key(self.kind, self.params, self.inputs)

    def save(self, path: Path | str) -> Path:
        """Write to the file PATH where it ends in .nc, else to PATH/KIND-KEY.nc, atomically, and return the file's path."""
        path = Path(path)
        target = path if path.suffix == ".nc" and not path.is_dir() else path / f"{self.kind}-{self.key}.nc"
        target.parent.mkdir(parents=True, exist_ok=True)
        data = self.data.assign_attrs(
            kind=self.kind,
            title=self.title,
            schema=SCHEMA,
            params=json.dumps(self.params, sort_keys=True),
            inputs=json.dumps(self.inputs, sort_keys=True),
            made=json.dumps(self.made, sort_keys=True),
        )
        encoding = {
            name: {"zlib": True, "complevel": 4} for name, v in data.data_vars.items() if v.dtype.kind in "fiu" and v.ndim
        }
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-", suffix=".nc")
        os.close(handle)
        try:
            data.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return target

    def table(self) -> pd.DataFrame:
        """Every measure as tidy rows: its dimensions, measure, value, low, high, n, unit, better."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name in self.measures:
            v = self.data[name]
            low, high, count = (self.data.get(f"{name}_{end}") for end in ("low", "high", "n"))
            for at in np.ndindex(v.shape):
                row = {str(d): v[d].values[i] if d in v.coords else i for d, i in zip(v.dims, at, strict=True)}
                row |= {"measure": name, "value": float(v.values[at])}
                row |= {"low": float(low.values[at]) if low is not None else np.nan}
                row |= {"high": float(high.values[at]) if high is not None else np.nan}
                rows.append(row | {k: v.attrs.get(k, "") for k in ("n", "unit", "better")})
                if count is not None:
                    rows[-1]["n"] = int(count.values[at])
        return pd.DataFrame(rows)

    @property
    def measures(self) -> list[str]:
        """Names of the variables that are measures."""
        return [str(name) for name, v in self.data.data_vars.items() if "better" in v.attrs]

    def plot(self) -> Figure:
        """The default figure of this kind of result."""
        from interp.plots import figure

        return figure(self)


def open_result(path: Path | str) -> Result:
    """Read a saved result; raises InputError where there is no such file or it is none of ours."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no result at {path}; expected a .nc file written by interp")
    try:
        data = xr.load_dataset(path, engine="h5netcdf")
        attrs = data.attrs
        loaded = {k: json.loads(attrs.pop(k)) for k in ("params", "inputs", "made")}
        kind, title, schema = attrs.pop("kind"), attrs.pop("title"), int(attrs.pop("schema"))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a result of interp ({error}); expected a .nc file written by Result.save") from error
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA}; compute it again")
    if kind in ("attention", "faithfulness") and "method" in data.dims:
        data = data.rename(method="reading")  # what the dimension was called once
    return Result(kind, title, data, **loaded)


def content_key(kind: str, params: dict[str, Any], inputs: dict[str, Any]) -> str:
    """16 hexadecimal digits that name one piece of work."""
    revision = [REVISIONS[kind]] if kind in REVISIONS else []
    text = json.dumps([kind, params, inputs, SCHEMA, *revision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_plain(params: Any) -> dict[str, Any]:
    """Parameters (a dataclass, which may hold others) as plain data.

    A field with the metadata `later` was added when results had been saved without: at its default it is left out, so that they
    keep their key. One with the metadata `cost` only says how the work is cut: it is always left out. Models are their digests.
    """
    plain = {}
    for f in fields(params):
        value = getattr(params, f.name)
        if f.metadata.get("cost") or (f.metadata.get("later") and value == f.default):
            continue
        plain[f.name] = as_plain(value) if is_dataclass(value) else _as_digests(value)
    return plain


def _as_digests(value: Any) -> Any:
    models = isinstance(value, tuple) and any(hasattr(v, "digest") for v in value)
    return [v.digest for v in value] if models else value


def inputs_of(models: Any, batch: Any) -> dict[str, Any]:
    """What identifies the inputs of an analysis: the digests of the models, in order, and of the images."""
    return {"models": [m.digest for m in models], "ids": [m.card.id for m in models], "batch": batch.digest}


def remember(folder: Path, kind: str, analysis: Callable[..., Result], models: Any, batch: Any, params: Any) -> Result:
    """The saved result of this work from `folder`, or else `analysis(models, batch, params)`, saved there."""
    path = folder / f"{kind}-{content_key(kind, as_plain(params), inputs_of(models, batch))}.nc"
    if path.is_file():
        return open_result(path)
    result = analysis(models, batch, params)
    result.save(path)
    return result


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures: what it is called, how it is computed, whence it comes, which way is better."""

    name: str
    title: str
    formula: str
    source: str
    unit: str
    better: str


def measure(
    dims: tuple[str, ...], values: np.ndarray, *, unit: str, better: str, n: int, long_name: str = ""
) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """A measure as xarray wants it; better is 'higher', 'lower' or 'none' (descriptive)."""
    return dims, values, {"unit": unit, "better": better, "n": n, "long_name": long_name}


def with_interval(
    name: str, dims: tuple[str, ...], intervals: Iterable[Any], shape: tuple[int, ...], **attrs: Any
) -> dict[str, tuple[Any, ...]]:
    """Variables NAME, NAME_low and NAME_high from a flat series of (mean, low, high) in C order of `shape`."""
    block = np.asarray([tuple(i) for i in intervals], dtype=np.float64).reshape(*shape, 3)
    said = {end: f"{attrs.get('long_name') or name}, {end}er end of its interval" for end in ("low", "high")}
    return {
        name: measure(dims, block[..., 0], **attrs),
        f"{name}_low": (dims, block[..., 1], {"unit": attrs["unit"], "long_name": said["low"]}),
        f"{name}_high": (dims, block[..., 2], {"unit": attrs["unit"], "long_name": said["high"]}),
    }


COMMON = {"original": ("the image", "share of full intensity"), "truth": ("label of the image, −1 unknown", "class index")}

READINGS = {  # what figures call the readings of a model, and the maps judged beside them, that users type otherwise
    "auto": "own attention or Grad-CAM",
    "raw": "attention",
    "channels": "channel attention, derived",
    "weighted": "gradient-weighted attention",
    "rollout": "roll-out",
    "chefer": "gradient × attention",
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "scorecam": "Score-CAM",
    "integrated-gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
}


def described(data: xr.Dataset, words: Mapping[str, tuple[str, str]]) -> xr.Dataset:
    """The dataset with `long_name` and `unit` ('' for words and yes or no) of the variables in `words` and COMMON that it has."""
    data = data.copy()
    for name, (long_name, unit) in (COMMON | dict(words)).items():
        if name in data.variables:
            data[name].attrs |= {"long_name": long_name} | ({"unit": unit} if unit else {})
    return data
