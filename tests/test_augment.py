"""What happens to images before training: each augmentation by what it may change, and batches that depend on the step alone."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from interp.data.source import Encoded, Pixels, read_encoded
from interp.training.augment import crop_and_flip, erase, mixer, on_pictures, reseed, smooth
from interp.training.feed import Feed
from interp.training.recipe import Recipe
from interp.types import InputError, Preprocess

PLAIN = Recipe("p", "resnet50_32", num_classes=4, batch_size=4, epochs=2)
CPU = torch.device("cpu")


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 10, size: int = 32, seed: int = 0) -> Pixels:
    """Image i is filled with i, so that a batch shows whom it took."""
    x = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 3, size, size).contiguous()
    return Pixels(x, torch.arange(n) % 4, tuple(map(str, range(n))), ())


def taken(feed: Feed) -> list[list[int]]:
    return [x[:, 0, 0, 0].tolist() for x, _ in feed.batches(0, CPU)]


def test_no_padding_and_no_flip_is_the_image() -> None:
    x = torch.rand(5, 3, 6, 8, generator=gen())
    assert torch.equal(crop_and_flip(x, pad=0, flip=False, generator=gen()), x)


def test_a_flip_mirrors_about_half_of_the_images_and_changes_no_value() -> None:
    x = torch.rand(200, 3, 4, 6, generator=gen())
    out = crop_and_flip(x, pad=0, flip=True, generator=gen(1))
    kept = (out == x).flatten(1).all(1)
    assert torch.equal(out[~kept], x[~kept].flip(3)) and 70 < int(kept.sum()) < 130


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    x = torch.rand(60, 3, 5, 7, generator=gen()) + 0.1
    out = crop_and_flip(x, pad=2, flip=False, generator=gen(1))
    padded, seen = F.pad(x, (2, 2, 2, 2)), set()
    assert out.shape == x.shape
    for i in range(60):
        at = [(a, b) for a in range(5) for b in range(5) if torch.equal(out[i], padded[i, :, a : a + 5, b : b + 7])]
        assert len(at) == 1
        seen.add(at[0])
    assert {a for a, _ in seen} == {b for _, b in seen} == set(range(5))


def test_augmentation_follows_its_generator() -> None:
    x = torch.rand(9, 3, 8, 8, generator=gen())
    a, b, c = (crop_and_flip(x, pad=3, flip=True, generator=gen(s)) for s in (4, 4, 5))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_erasing_replaces_rectangles_by_noise_in_the_box() -> None:
    x = torch.rand(100, 3, 16, 16, generator=gen())
    reseed(0)
    out = erase(x, 0.5)
    changed = (out != x).any(1)
    touched = changed.flatten(1).any(1)
    assert 30 < int(touched.sum()) < 70 and out.min() >= 0 and out.max() <= 1
    for mask in changed[touched]:
        rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        assert bool(box.all()) and 0.01 < box.numel() / 256 < 0.4
    assert torch.equal(erase(x, 0.0), x)


def test_mixup_is_a_convex_combination_with_its_reverse_and_cutmix_a_box_of_it() -> None:
    x, y = torch.rand(6, 3, 8, 8, generator=gen()), torch.tensor([0, 1, 2, 3, 0, 1])
    for change in ({"mixup": 0.8}, {"cutmix": 1.0}):
        reseed(3)
        mix = mixer(dataclasses.replace(PLAIN, **change))
        assert mix is not None
        mixed, target = mix(x, y)
        share = target[0, 0]
        assert torch.allclose(target.sum(1), torch.ones(6)) and 0 < share < 1
        if "mixup" in change:
            assert torch.allclose(mixed, share * x + (1 - share) * x.flip(0), atol=1e-6)
        else:
            other = (mixed != x).any(1)
            assert torch.equal(mixed[:, :, other[0]], x.flip(0)[:, :, other[0]])
            assert 1 - other[0].float().mean() == pytest.approx(float(share), abs=1e-6)
    assert mixer(PLAIN) is None
    assert torch.equal(x, torch.rand(6, 3, 8, 8, generator=gen()))  # the given images are left alone


def test_smoothing_keeps_the_sum_and_zero_is_the_label() -> None:
    y = torch.tensor([0, 2])
    assert torch.equal(smooth(y, 4, 0.0), y)
    assert smooth(y, 4, 0.2).tolist() == [pytest.approx([0.85, 0.05, 0.05, 0.05]), pytest.approx([0.05, 0.05, 0.85, 0.05])]


def test_randaugment_is_timms_and_its_name_is_checked() -> None:
    transform = on_pictures(dataclasses.replace(PLAIN, randaugment="rand-m9-mstd0.5-inc1"))
    assert transform is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    results = set()
    for seed in range(300):  # among them posterising to no bit at all, which Pillow refuses
        reseed(seed)
        results.add(transform(image).tobytes())
    assert len(results) > 150 and all(len(r) == 32 * 32 * 3 for r in results)
    for wrong in ("randd-m9", "rand-m9-z3", "rand-mx"):
        with pytest.raises(InputError, match=rf"randaugment is '{wrong}'; expected timm's form"):
            on_pictures(dataclasses.replace(PLAIN, randaugment=wrong))
    assert on_pictures(PLAIN) is None


def test_each_pass_takes_every_image_once() -> None:
    feed = Feed(PLAIN, [pixels(10)])
    flat = [i for batch in taken(feed) for i in batch]
    assert feed.total == 5 and feed.per_epoch == 2.5
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]


def test_batches_depend_on_seed_and_step_alone() -> None:
    feed = Feed(PLAIN, [pixels(10)])
    late = [x[:, 0, 0, 0].tolist() for x, _ in feed.batches(3, CPU)]
    assert late == taken(feed)[3:]
    assert taken(Feed(dataclasses.replace(PLAIN, seed=1), [pixels(10)])) != taken(feed)


def test_processes_share_each_batch() -> None:
    whole = taken(Feed(PLAIN, [pixels(10)]))
    parts = [taken(Feed(PLAIN, [pixels(10)], rank=r, world=2)) for r in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(a + b) and len(a) == len(b) == 2
    with pytest.raises(InputError, match="batch_size 6 over 2 processes is odd; mixup and cutmix pair images"):
        Feed(dataclasses.replace(PLAIN, batch_size=6, mixup=0.8), [pixels(10)], rank=0, world=2)
    with pytest.raises(InputError, match="batch_size 4 does not divide over 3 processes"):
        Feed(PLAIN, [pixels(10)], rank=0, world=3)


def test_a_second_source_fills_its_share() -> None:
    recipe = dataclasses.replace(PLAIN, extra_share=0.75, epochs=1)
    extra = dataclasses.replace(pixels(100), pixels=pixels(100).pixels + 100)
    batches = taken(Feed(recipe, [pixels(12), extra]))
    assert len(batches) == 3 and all(sum(i >= 100 for i in batch) == 3 for batch in batches)
    with pytest.raises(InputError, match=r"extra_share is 0\.75 and 1 data sets were given"):
        Feed(recipe, [pixels(10)])
    with pytest.raises(InputError, match="extra_share is 0 and 2 data sets were given"):
        Feed(PLAIN, [pixels(10), extra])


@pytest.mark.parametrize("workers", [0, 2])
def test_single_images_are_augmented_alike_with_and_without_workers(workers: int) -> None:
    recipe = dataclasses.replace(PLAIN, randaugment="rand-m9-mstd0.5-inc1", epochs=1)
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=gen(), dtype=torch.uint8)
    data = dataclasses.replace(pixels(8), pixels=noise)
    feed = pickle.loads(pickle.dumps(Feed(recipe, [data])))  # as spawned workers get it
    found = list(feed.batches(0, CPU, workers=workers))
    want = [feed[step] for step in range(2)]
    for (x, y), (a, b) in zip(found, want, strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)
        assert not torch.equal(x, data.pixels[feed.rows(0)[0]])


def encoded(tmp_path: Path) -> Encoded:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            colour = np.full((40 + 10 * i, 50, 3), 40 * i + (100 if name == "b" else 0), np.uint8)
            Image.fromarray(colour).save(tmp_path / name / f"{i}.png")
    return read_encoded(f"folder:{tmp_path}")


def test_files_are_decoded_as_they_are_needed(tmp_path: Path) -> None:
    found = encoded(tmp_path)
    assert found.classes == ("a", "b") and found.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(found.sources) == 6
    recipe = Recipe("e", "b", num_classes=2, batch_size=6, epochs=1, preprocess=Preprocess(32, 32))
    for change in ({}, {"resized_crop": (0.2, 1.0)}, {"randaugment": "rand-m0-n0"}):
        x, y = next(iter(Feed(dataclasses.replace(recipe, **change), [found]).batches(0, CPU)))
        colours: Tensor = x[:, 0, 16, 16]
        assert x.shape == (6, 3, 32, 32) and x.dtype == torch.uint8
        assert sorted(colours.tolist()) == [0, 40, 80, 100, 140, 180] and ((colours >= 100).long() == y).all()


def test_parquet_bytes_are_decoded_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 48, 3), 7, np.uint8)).save(buffer, "PNG")
    pq.write_table(pa.table({"img": [{"bytes": buffer.getvalue()}] * 4, "label": [0, 1, 2, 3]}), tmp_path / "a.parquet")
    recipe = dataclasses.replace(PLAIN, resized_crop=(0.5, 1.0), epochs=1)
    x, _ = next(iter(Feed(recipe, [read_encoded(f"parquet:{tmp_path / 'a.parquet'}")]).batches(0, CPU)))
    assert x.shape == (4, 3, 32, 32) and (x == 7).all()


def test_data_that_do_not_fit_the_recipe_are_refused() -> None:
    data = pixels(10)
    with pytest.raises(InputError, match=r"labels go up to 4, the recipe has num_classes = 4"):
        Feed(PLAIN, [dataclasses.replace(data, labels=data.labels + 1)])
    with pytest.raises(InputError, match="no labels"):
        Feed(PLAIN, [dataclasses.replace(data, labels=data.labels - 1)])
    with pytest.raises(InputError, match=r"3 images do not fill one batch of 4"):
        Feed(PLAIN, [pixels(3)])
    with pytest.raises(InputError, match=r"come with 2 classes \(x, y…\), recipe p has num_classes = 4"):
        Feed(PLAIN, [dataclasses.replace(data, classes=("x", "y"))])
    with pytest.raises(InputError, match=r"the images are 48×48 pixels, recipe p has size 32"):
        Feed(PLAIN, [pixels(10, 48)])
