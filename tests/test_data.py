"""Image sources: what is shown to a model is what lies in the file, resized only as the checkpoint says."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import interp
from interp.data.decode import decode
from interp.data.labels import CIFAR10
from interp.data.source import read_pixels
from interp.types import Batch, InputError, Preprocess


def noise(w: int = 32, h: int = 32, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, kind)
    return out.getvalue()


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """bird: 5 images, cat: 1, dog: 3, with files that are no images among them."""
    for c, (name, count) in enumerate({"dog": 3, "bird": 5, "cat": 1}.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "set" / name / f"{i}.png").write_bytes(encoded(noise(seed=10 * c + i)))
        (tmp_path / "set" / name / "notes.txt").write_text("not an image")
    (tmp_path / "set" / "readme.md").write_text("not a class")
    return tmp_path / "set"


def test_class_folders_are_classes_in_alphabetical_order(classes: Path) -> None:
    batch = interp.images(f"folder:{classes}")
    assert batch.classes == ("bird", "cat", "dog") and batch.labels.tolist() == [0] * 5 + [1] + [2] * 3
    assert batch.ids[0] == "bird/0.png" and batch.ids[5:7] == ("cat/0.png", "dog/0.png")
    assert torch.equal(batch.images[1] * 255, chw(noise(seed=11)).float())
    assert torch.equal(batch.images[8] * 255, chw(noise(seed=2)).float())


@pytest.mark.parametrize(
    ("n", "counts"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (5, [2, 1, 2]), (7, [3, 1, 3]), (9, [5, 1, 3]), (50, [5, 1, 3])]
)
def test_n_images_are_spread_over_the_classes(n: int, counts: list[int], classes: Path) -> None:
    batch = interp.images(f"folder:{classes}", n=n)
    found = Counter(batch.labels.tolist())
    assert [found[c] for c in range(3)] == counts and batch.labels.tolist() == sorted(batch.labels.tolist())
    assert len(batch.classes) == 3


def parquet(path: Path, column: str = "img", *, rows: int = 300, names: bool = True, **columns: list[Any]) -> Path:
    table = pa.table(
        {
            column: [{"bytes": encoded(noise(4, 4, seed=i)), "path": f"{i}.png"} for i in range(rows)],
            "label": [i % 3 for i in range(rows)],
        }
        | columns
    )
    info = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)} if names else {}), path)
    return path


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_rows_come_in_order_with_the_names_of_their_metadata(column: str, tmp_path: Path) -> None:
    batch = interp.images(f"parquet:{parquet(tmp_path / 'x.parquet', column)}")  # more rows than one read takes
    assert len(batch) == 300 and batch.labels.tolist() == [i % 3 for i in range(300)]
    assert batch.classes == ("a", "b", "c") and batch.ids[299] == "299"
    assert torch.equal(batch.images[299] * 255, chw(noise(4, 4, seed=299)).float())
    few = interp.images(f"parquet:{tmp_path / 'x.parquet'}", n=7)
    assert few.digest == batch[:7].digest


def test_parquet_without_metadata_has_no_class_names(tmp_path: Path) -> None:
    batch = interp.images(f"parquet:{parquet(tmp_path / 'x.parquet', rows=3, names=False)}")
    assert batch.classes == () and batch.labels.tolist() == [0, 1, 2]


def test_bad_parquet_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"there is no parquet file .*x\.parquet; expected samples:cifar10"):
        interp.images(f"parquet:{path}")
    whole = parquet(path, rows=3).read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"x\.parquet is not a readable parquet file"):
        interp.images(f"parquet:{path}")
    with pytest.raises(InputError, match=r"has columns pixels, label; expected img"):
        interp.images(f"parquet:{parquet(path, 'pixels', rows=3)}")
    with pytest.raises(InputError, match=r"row 0 has no image bytes"):
        interp.images(f"parquet:{parquet(path, rows=2, img=[{'path': 'elsewhere.png'}] * 2)}")
    with pytest.raises(InputError, match=r"row 1 has .* no integer label"):
        interp.images(f"parquet:{parquet(path, rows=2, label=[1, None])}")


def test_one_image_file_is_a_batch_without_a_label(tmp_path: Path) -> None:
    for name, kind in {"a.PNG": "PNG", "b.bmp": "BMP"}.items():
        (tmp_path / name).write_bytes(encoded(noise(40, 24), kind))
        batch = interp.images(str(tmp_path / name))
        assert batch.labels.tolist() == [-1] and batch.ids == (name,) and batch.classes == ()
        assert torch.equal(batch.images[0] * 255, chw(noise(40, 24)).float())


def test_the_bundled_photographs_are_labelled(samples: Batch) -> None:
    assert samples.images.shape == (20, 3, 32, 32) and samples.classes == CIFAR10
    assert all(int(i.split("_")[2]) == label for i, label in zip(samples.ids, samples.labels.tolist(), strict=True))
    large = interp.images("samples:imagenet", n=3, preprocess=Preprocess(64, 72))
    assert large.images.shape == (3, 3, 64, 64) and int(large.labels.max()) < 1000


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    for resize in (32, 40):
        found = decode(encoded(noise()), name="x", preprocess=Preprocess(32, resize))
        assert torch.equal(found, chw(noise()))


def test_larger_images_are_resized_and_cropped_as_the_card_says() -> None:
    array = noise(100, 60)
    for size, resize, kind in ((32, 32, "bicubic"), (32, 40, "bilinear"), (24, 48, "nearest"), (60, 20, "bicubic")):
        side = max(size, resize)
        small = Image.fromarray(array).resize((round(100 * side / 60), side), getattr(Image.Resampling, kind.upper()))
        x, y = (small.width - size) // 2, (small.height - size) // 2
        want = np.asarray(small)[y : y + size, x : x + size]
        found = decode(encoded(array), name="x", preprocess=Preprocess(size, resize, kind))
        assert found.shape == (3, size, size) and torch.equal(found, chw(want.copy()))


def test_the_crop_is_the_centre() -> None:
    array = np.zeros((32, 96, 3), np.uint8)
    array[:, 32:64] = 200
    assert decode(encoded(array), name="x", preprocess=Preprocess(32, 32)).unique().tolist() == [200]
    assert decode(encoded(array.transpose(1, 0, 2)), name="x", preprocess=Preprocess(32, 32)).unique().tolist() == [200]


def test_smaller_images_are_refused_not_enlarged() -> None:
    for w, h in ((31, 40), (40, 31), (8, 8)):
        with pytest.raises(InputError, match=rf"img is {w}×{h} pixels, smaller than the 32×32.*larger images"):
            decode(encoded(noise(w, h)), name="img", preprocess=Preprocess(32, 32))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_eight_bit_modes_are_read_as_pillow_converts_them(mode: str) -> None:
    data = encoded(noise(), mode=mode)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        want = np.asarray(image.convert("RGB")).copy()
    assert torch.equal(decode(data, name="x"), chw(want))


def test_transparent_pixels_are_refused() -> None:
    image = Image.fromarray(noise()).convert("RGBA")
    image.putpixel((3, 4), (10, 20, 30, 254))
    palette = Image.fromarray(noise()).convert("P")
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=palette.getpixel((0, 0)))
    for data, mode in ((encoded(np.asarray(image)), "RGBA"), (out.getvalue(), "P")):
        with pytest.raises(InputError, match=rf"pic has transparent pixels \(mode {mode}\); flatten"):
            decode(data, name="pic")


def test_sixteen_bit_and_float_images_are_refused() -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(deep, "PNG")
    float_ = io.BytesIO()
    Image.fromarray(np.ones((32, 32), np.float32)).save(float_, "TIFF")
    for data, mode in ((deep.getvalue(), r"I;16"), (float_.getvalue(), "F")):
        with pytest.raises(InputError, match=rf"pic has mode {mode}; expected 8-bit colour or grey"):
            decode(data, name="pic")


def test_mixed_sizes_are_refused_unless_a_model_says_how_to_crop(classes: Path) -> None:
    (classes / "cat" / "0.png").write_bytes(encoded(noise(48, 40)))
    with pytest.raises(InputError, match=r"bird/0\.png is 32×32 pixels and cat/0\.png 48×40; give all one size"):
        interp.images(f"folder:{classes}")
    assert interp.images(f"folder:{classes}", preprocess=Preprocess(32, 32)).images.shape == (9, 3, 32, 32)


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"there is no folder .*root"):
        interp.images(f"folder:{root}")
    root.mkdir()
    with pytest.raises(InputError, match=r"root has no sub-folders; expected one per class"):
        interp.images(f"folder:{root}")
    (root / "cat").mkdir()
    with pytest.raises(InputError, match=r"holds no images"):
        interp.images(f"folder:{root}")


def test_a_corrupt_image_is_named(classes: Path) -> None:
    path = classes / "dog" / "1.png"
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], b"", b"<html>", whole[:50] + b"\xff" * 60 + whole[110:]):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=r"dog/1\.png is not a readable image .*; expected PNG, JPEG") as caught:
            interp.images(f"folder:{classes}")
        assert " at 0x" not in str(caught.value)


def test_a_chunk_with_a_broken_name_is_an_unreadable_image_too() -> None:
    whole = encoded(noise())
    at = whole.rindex(b"IEND")
    broken = whole[:at] + b"\x07\xba\x847" + whole[at + 4 :]
    at = whole.index(b"IDAT")
    for data in (broken, whole[:at] + b"\x00\x01\x02\x03" + whole[at + 4 :]):
        try:
            assert torch.equal(decode(data, name="x"), chw(noise()))  # complete but for its last word
        except InputError as error:
            assert "x is not a readable image" in str(error)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cifar10", r"'cifar10' is no image source; expected samples:cifar10, .* or the path of one image"),
        ("samples:cifar100", r"no samples 'cifar100'; expected samples:cifar10 or samples:imagenet"),
        ("samples:", r"no samples ''"),
        ("hub:cifar10", r"'hub:cifar10' is no image source"),
        ("missing.png", r"there is no image missing\.png"),
        ("/", r"/ is a folder; for class folders write folder:/"),
        ("", r"no image source|is a folder"),
    ],
)
def test_unknown_sources_name_the_known_ones(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        interp.images(spec)


def test_fewer_than_one_image_cannot_be_asked_for() -> None:
    for n in (0, -1):
        with pytest.raises(InputError, match=rf"{n} images were asked for"):
            interp.images("samples:cifar10", n=n)


def test_pixels_are_the_batch_in_eight_bits(classes: Path) -> None:
    found, batch = read_pixels(f"folder:{classes}", n=4), interp.images(f"folder:{classes}", n=4)
    assert found.pixels.dtype == torch.uint8 and torch.equal(found.pixels.float() / 255, batch.images)
    assert torch.equal(found.labels, batch.labels) and found.ids == batch.ids and found.classes == batch.classes


def trimap(mask: np.ndarray, mode: str = "L") -> bytes:
    """PNG with 1 in the mask and 2 outside, one border pixel 3 in the corner."""
    values = np.where(mask, 1, 2).astype(np.uint8)
    values[0, 0] = 3
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 0, 0, 200])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def objects(rows: int, w: int = 48, h: int = 40) -> tuple[list[np.ndarray], list[dict[str, bytes]]]:
    """Random blobs of blocks of 4 pixels, and pictures that are white in them and black outside."""
    blocks = np.random.default_rng(1).integers(0, 2, (rows, h // 4, w // 4)).astype(bool)
    masks = [b.repeat(4, 0).repeat(4, 1) for b in blocks]
    return masks, [{"bytes": encoded(np.repeat(255 * m[..., None], 3, 2).astype(np.uint8))} for m in masks]


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("struct", [False, True])
def test_trimaps_are_masks_with_their_borders(mode: str, struct: bool, tmp_path: Path) -> None:
    wanted, img = objects(300)
    cells: list[Any] = [trimap(m, mode) for m in wanted]
    columns = {"img": img, "trimap": [{"bytes": c} for c in cells] if struct else cells, "box_xyxy": [[0, 0, 1, 1]] * 300}
    batch = interp.images(f"parquet:{parquet(tmp_path / 'x.parquet', **columns)}")
    for m in wanted:
        m[0, 0] = True  # the border
    assert batch.masks is not None and batch.masks.dtype == torch.bool
    assert torch.equal(batch.masks, torch.from_numpy(np.stack(wanted)))
    few = interp.images(f"parquet:{tmp_path / 'x.parquet'}", n=270)
    assert few.digest == batch[:270].digest


def test_boxes_are_filled_to_their_last_pixel(tmp_path: Path) -> None:
    boxes = [[2, 1, 5, 3], [0, 0, 7, 5], [7, 5, 7, 5]]
    img = [{"bytes": encoded(noise(8, 6))}] * 3
    batch = interp.images(f"parquet:{parquet(tmp_path / 'x.parquet', rows=3, img=img, box_xyxy=boxes)}")
    assert batch.masks is not None and batch.masks.sum((1, 2)).tolist() == [4 * 3, 48, 1]
    assert batch.masks[0].nonzero().aminmax(dim=0).min.tolist() == [1, 2]
    assert batch.masks[0].nonzero().aminmax(dim=0).max.tolist() == [3, 5]


@pytest.mark.parametrize("preprocess", [Preprocess(32, 32), Preprocess(24, 36), Preprocess(20, 80, "nearest"), Preprocess(40, 1)])
def test_masks_go_where_their_images_go(preprocess: Preprocess, tmp_path: Path) -> None:
    wanted, img = objects(9)
    path = parquet(tmp_path / "x.parquet", rows=9, img=img, trimap=[trimap(m) for m in wanted])
    batch = interp.images(f"parquet:{path}", preprocess=preprocess)
    assert batch.masks is not None and batch.masks.shape == batch.images.shape[:1] + batch.images.shape[2:]
    off = (batch.images[:, 0] - batch.masks.float()).abs()  # the picture shows its mask, but where interpolation mixes
    corner = 1 if preprocess.size == preprocess.resize else 0
    assert float(off[:, corner:, corner:].mean()) < 0.12 and float((off > 0.6).float().mean()) < 0.002
    shifted = (batch.images[:, 0, :, 2:] - batch.masks[:, :, :-2].float()).abs()
    assert float(shifted.mean()) > 0.2


def test_masks_are_resized_to_the_nearest_pixel(tmp_path: Path) -> None:
    speckled = np.random.default_rng(2).integers(0, 2, (40, 48)).astype(bool)
    speckled[0, 0] = True  # the border
    path = parquet(tmp_path / "x.parquet", rows=1, img=[{"bytes": encoded(noise(48, 40))}], trimap=[trimap(speckled)])
    batch = interp.images(f"parquet:{path}", preprocess=Preprocess(24, 30))
    small = np.asarray(Image.fromarray(speckled.astype(np.uint8)).resize((36, 30), Image.Resampling.NEAREST))
    assert batch.masks is not None and np.array_equal(batch.masks[0].numpy(), small[3:27, 6:30] == 1)


def test_a_mask_may_be_empty_and_other_files_have_none(classes: Path, tmp_path: Path) -> None:
    img, empty = [{"bytes": encoded(noise(96, 32))}], encoded(np.full((32, 96), 2, np.uint8))
    box = parquet(tmp_path / "box.parquet", rows=1, img=img, box_xyxy=[[0, 0, 10, 10]])
    batch = interp.images(f"parquet:{box}", preprocess=Preprocess(32, 32))
    assert batch.masks is not None and not batch.masks.any()  # the crop left the box outside
    batch = interp.images(f"parquet:{parquet(tmp_path / 'tri.parquet', rows=1, img=img, trimap=[empty])}")
    assert batch.masks is not None and batch.masks.shape == (1, 32, 96) and not batch.masks.any()
    assert interp.images(f"parquet:{parquet(tmp_path / 'plain.parquet', rows=2)}").masks is None
    assert interp.images(f"folder:{classes}").masks is None and interp.images("samples:cifar10").masks is None


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("trimap", encoded(np.full((6, 5), 1, np.uint8)), r"5×6 of mode L; expected 8×6 like its image"),
        ("trimap", encoded(noise(8, 6)), r"8×6 of mode RGB; expected .* mode L or P"),
        ("trimap", encoded(np.full((6, 8), 255, np.uint8)), r"holds \[255\]; expected 1 for the object"),
        ("trimap", b"<html>", r"is not a readable image"),
        ("trimap", None, r"is None; expected the bytes of a PNG"),
        ("box_xyxy", [0, 0, 8, 5], r"\[0, 0, 8, 5\]; expected x0 ≤ x1 and y0 ≤ y1 inside its 8×6 pixels"),
        ("box_xyxy", [4, 0, 3, 5], r"expected x0 ≤ x1"),
        ("box_xyxy", [0, -1, 3, 5], r"expected x0 ≤ x1"),
        ("box_xyxy", [0, 1, 2], r"expected four numbers"),
        ("box_xyxy", None, r"is None; expected four numbers"),
    ],
)
def test_bad_masks_are_refused_by_their_row(column: str, cell: Any, says: str, tmp_path: Path) -> None:
    good = {"trimap": encoded(np.full((6, 8), 1, np.uint8)), "box_xyxy": [0, 0, 7, 5]}[column]
    img = [{"bytes": encoded(noise(8, 6))}] * 2
    path = parquet(tmp_path / "x.parquet", rows=2, img=img, **{column: [good, cell]})
    with pytest.raises(InputError, match=rf"{column} of row 1 .*{says}"):
        interp.images(f"parquet:{path}")
    assert read_pixels(f"parquet:{path}").pixels.shape == (2, 3, 6, 8)  # training reads no masks
