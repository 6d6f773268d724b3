"""A saved result is the result; its file is complete or absent; the same work is found again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import interp
from interp.errors import InputError
from interp.models.model import Model
from interp.result import Result, content_key, described, inputs_of, measure, remember, with_interval
from interp.types import Batch


@dataclass(frozen=True)
class Params:
    eps: float = 0.5
    name: str = "ε"
    values: tuple[int, ...] = (1, 2)


def undescribed(data: xr.Dataset) -> list[str]:
    """Variables that do not say what they are or, being numbers, in which unit."""
    numbers = {name for name, v in data.data_vars.items() if v.dtype.kind in "fiu"}
    return [
        str(n) for n, v in data.data_vars.items() if not v.attrs.get("long_name") or (n in numbers and not v.attrs.get("unit"))
    ]


def example(**changes: Any) -> Result:
    data = xr.Dataset(
        {
            "picture": (("model", "y", "x"), np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 7),
            "hit": (("model", "image"), np.array([[True, False], [False, False]])),
            "count": ("model", np.array([3, -1])),
            "half": ("model", np.array([0.1, np.nan])),
            "method": ("model", ["class attention · ε", ""]),
            "scalar": ((), 2.5),
        },
        coords={"model": ["xcit", "βeta"], "robust": ("model", [True, False]), "image": ["0.png", "a/ü.png"]},
        attrs={"chance": 0.1},
    )
    rates = with_interval(
        "clean", ("model",), [(0.5, 0.2, 0.8), (np.nan, 0, 1)], (2,), unit="share", better="higher", n=4, long_name="Clean"
    )
    made = {"versions": {"torch": "2"}, "seconds": 1.5}
    fields: dict[str, Any] = {
        "made": made,
        "params": dataclasses.asdict(Params()),
        "inputs": {"models": ["a", "b"], "batch": "c"},
    }
    return Result("kind", "Τίτλος: ε = 8/255", data.assign(rates), **(fields | changes))


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    result = example()
    path = result.save(tmp_path / "new" / "folder")
    again = interp.open(path)
    assert path.name == f"kind-{result.key}.nc" and again.key == result.key
    xr.testing.assert_identical(again.data, result.data)
    for name, v in result.data.variables.items():
        kind = again.data[name].dtype.kind
        assert kind == v.dtype.kind or {kind, v.dtype.kind} <= set("OUT"), name
    assert again.data["hit"].dtype == bool and again.data["picture"].dtype == np.float32
    assert (again.kind, again.title, again.inputs, again.made) == (result.kind, result.title, result.inputs, result.made)
    assert again.params == {"eps": 0.5, "name": "ε", "values": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == [path.name] and path.stat().st_mode & 0o777 == 0o644


def test_a_path_that_ends_in_nc_is_that_file(tmp_path: Path) -> None:
    result = example()
    path = result.save(tmp_path / "notes" / "nb.nc")
    assert path == tmp_path / "notes" / "nb.nc" and path.is_file() and list(path.parent.iterdir()) == [path]
    assert interp.open(str(path)).key == result.key and result.save(path) == path
    (tmp_path / "folder.nc").mkdir()
    assert result.save(tmp_path / "folder.nc").parent == tmp_path / "folder.nc"  # folders stay folders
    assert result.save(tmp_path / "v1.5") == tmp_path / "v1.5" / f"kind-{result.key}.nc"


def test_units_are_found_by_xarray_and_intervals_say_what_they_are(tmp_path: Path) -> None:
    result = example()
    for data in (result.data, interp.open(result.save(tmp_path)).data):
        assert {n: v.attrs["units"] for n, v in data.variables.items() if "units" in v.attrs} == dict.fromkeys(
            ("clean", "clean_low", "clean_high"), "share"
        )
        assert data["clean_high"].attrs["long_name"] == "Clean, higher end of its interval"
    (line,) = result.data["clean"].plot()
    assert line.axes is not None and line.axes.get_ylabel() == "Clean [share]"
    told = described(xr.Dataset({"truth": ("image", [1]), "a": ("image", [True])}), {"a": ("whether", ""), "b": ("none", "px")})
    assert told["truth"].attrs["unit"] == "class index" and told["a"].attrs == {"long_name": "whether"} and "b" not in told


@pytest.mark.parametrize("kind", ["attention", "faithfulness", "other"])
def test_an_older_file_has_its_readings_where_they_are_now(kind: str, tmp_path: Path) -> None:
    data = xr.Dataset({"map": (("method", "y"), np.eye(2))}, coords={"method": ["raw", "gradcam"]})
    again = interp.open(Result(kind, "t", data).save(tmp_path)).data
    assert again["map"].dims == (("method", "y") if kind == "other" else ("reading", "y"))
    assert kind == "other" or again["map"].sel(reading="gradcam").values.tolist() == [0, 1]


def test_saving_again_replaces_and_leaves_the_result_unchanged(tmp_path: Path) -> None:
    result = example()
    before = result.data.copy(deep=True)
    path = result.save(tmp_path)
    assert result.save(str(tmp_path)) == path and interp.open(path).save(tmp_path) == path
    assert list(tmp_path.iterdir()) == [path]
    xr.testing.assert_identical(result.data, before)


def test_the_key_names_the_work_and_nothing_else() -> None:
    key = example().key
    assert key == example(made={"seconds": 99}).key and len(key) == 16 and int(key, 16) >= 0
    assert key == content_key("kind", {"values": (1, 2), "name": "ε", "eps": 0.5}, {"batch": "c", "models": ["a", "b"]})
    others = [
        example(params=dataclasses.asdict(Params(eps=0.25))),
        example(params=dataclasses.asdict(Params(values=(2, 1)))),
        example(inputs={"models": ["b", "a"], "batch": "c"}),
        example(inputs={"models": ["a", "b"], "batch": "d"}),
        dataclasses.replace(example(), kind="other"),
    ]
    assert len({key, *(o.key for o in others)}) == 6


def test_a_failure_while_writing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = xr.Dataset.to_netcdf

    def breaks(data: xr.Dataset, path: str, **how: Any) -> None:
        real(data, path, **how)
        raise OSError("no space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", breaks)
    with pytest.raises(OSError, match="no space"):
        example().save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    path = example().save(tmp_path)
    whole = path.read_bytes()
    monkeypatch.setattr(xr.Dataset, "to_netcdf", breaks)
    with pytest.raises(OSError, match="no space"):
        example(made={"seconds": 7}).save(tmp_path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == whole


def test_remembered_work_is_done_once(tmp_path: Path, tiny: Any, samples: Batch) -> None:
    models, batch, calls = [tiny("resnet")], samples[:2], []

    def analysis(models: list[Model], batch: Batch, params: Params) -> Result:
        calls.append(params)
        data = xr.Dataset({"n": ((), float(len(batch) + params.eps))})
        return Result("count", "t", data, dataclasses.asdict(params), inputs_of(models, batch))

    first = remember(tmp_path, "count", analysis, models, batch, Params())
    again = remember(tmp_path, "count", analysis, models, batch, Params())
    assert len(calls) == 1 and len(list(tmp_path.iterdir())) == 1
    xr.testing.assert_identical(first.data, again.data)
    assert float(remember(tmp_path, "count", analysis, models, batch, Params(eps=0.1)).data["n"]) == 2.1
    remember(tmp_path, "count", analysis, models, samples[:3], Params())
    remember(tmp_path, "count", analysis, [tiny("resnet", seed=1)], batch, Params())
    remember(tmp_path, "count", analysis, [tiny("resnet", id="renamed")], batch, Params())
    assert len(calls) == 5 and len(list(tmp_path.iterdir())) == 5
    for _ in range(2):
        remember(tmp_path / "folder.nc", "count", analysis, models, batch, Params())
    assert len(calls) == 6 and (tmp_path / "folder.nc").is_dir()


def test_an_analysis_stopped_half_way_is_done_again(tmp_path: Path, tiny: Any, samples: Batch) -> None:
    def stopped(*_: Any) -> Result:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(tmp_path, "kind", stopped, [tiny("resnet")], samples[:1], Params())
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_row_per_model_and_measure() -> None:
    table = example().table()
    assert list(table.columns) == ["model", "measure", "value", "low", "high", "n", "unit", "better"]
    row = table.set_index(["model", "measure"]).loc[("xcit", "clean")]
    assert (row["value"], row["low"], row["high"], row["n"], row["unit"], row["better"]) == (0.5, 0.2, 0.8, 4, "share", "higher")
    assert len(table) == 2 and np.isnan(table["value"][1]) and example().measures == ["clean"]


def test_the_table_goes_through_every_dimension_in_order(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    data = xr.Dataset(
        {"m": measure(("a", "b"), values, unit="", better="lower", n=9), "other": ("a", [1.0, 2.0])},
        coords={"b": [0.1, 0.2, 0.3]},
    )
    for result in (Result("k", "t", data), interp.open(Result("k", "t", data).save(tmp_path))):
        table = result.table()
        assert table["value"].tolist() == list(range(6)) and set(table["measure"]) == {"m"}
        assert table["a"].tolist() == [0, 0, 0, 1, 1, 1] and table["b"].tolist() == [0.1, 0.2, 0.3] * 2
        assert table["low"].isna().all() and set(table["n"]) == {9}


def test_intervals_are_laid_out_in_the_order_of_the_shape() -> None:
    series = [(10 * i, 10 * i - 1, 10 * i + 1) for i in range(6)]
    block = with_interval("v", ("a", "b"), series, (2, 3), unit="u", better="none", n=1)
    data = xr.Dataset(block)
    assert float(data["v"][1, 0]) == 30 and float(data["v_low"][1, 2]) == 49 and float(data["v_high"][0, 1]) == 11
    assert "better" in data["v"].attrs and "better" not in data["v_low"].attrs


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no result at .*missing\.nc"):
        interp.open(tmp_path / "missing.nc")
    with pytest.raises(InputError, match="there is no result at"):
        interp.open(tmp_path)
    (tmp_path / "a.nc").write_text("<html></html>")
    (tmp_path / "b.nc").touch()
    xr.Dataset({"x": ("t", [1.0])}).to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    whole = example().save(tmp_path).read_bytes()
    (tmp_path / "d.nc").write_bytes(whole[: len(whole) // 2])
    for name in "abcd":
        with pytest.raises(InputError, match=rf"{name}\.nc is not a result of interp .*; expected a \.nc file"):
            interp.open(tmp_path / f"{name}.nc")


def test_a_result_of_another_schema_is_not_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = example().key
    monkeypatch.setattr("interp.result.SCHEMA", 0)
    path = example().save(tmp_path)
    assert example().key != key
    monkeypatch.undo()
    with pytest.raises(InputError, match="schema 0, this version reads 1; compute it again"):
        interp.open(path)


def test_provenance_is_recorded(tiny: Any, samples: Batch) -> None:
    model = tiny("resnet")
    result = Result.of("k", "t", xr.Dataset(), params=Params(), models=[model], batch=samples, started=0.0)
    assert result.inputs == {"models": [model.digest], "ids": ["tiny_resnet"], "batch": samples.digest}
    assert result.params == {"eps": 0.5, "name": "ε", "values": (1, 2)}
    assert result.made["seconds"] > 0 and set(result.made["versions"]) == {"numpy", "robust-interp", "timm", "torch"}


def test_every_analysis_wants_a_list_of_models(tiny_models: list[Model], samples: Batch) -> None:
    """A single model is the commonest slip, and means the same error everywhere."""
    analyses = ("attention", "attention_by_layer", "attention_heads", "attention_queries", "attention_shift", "accumulate")
    for name in (*analyses, "accuracy", "compare", "faithfulness", "invert", "sweep", "synthesise"):
        for models, said in ((tiny_models[0], "itself; expected a list of models"), ([], "no models were given")):
            with pytest.raises(InputError, match=said):
                getattr(interp, name)(models, samples)
