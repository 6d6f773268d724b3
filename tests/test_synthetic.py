"""Pictures whose answers are known: geometry, colours, seeds, spectra."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from interp.data.concepts import COLOURS, CONCEPTS, PATTERNS, STRIPES, concepts, polygon
from interp.data.conflicts import CLASSES16, IMAGENET16, Conflict, cue_conflict_folder, sixteen
from interp.data.outlines import SHAPES, inside
from interp.data.patterns import DRAWS, TEXTURES, pattern
from interp.data.synthetic import BACKGROUNDS, cue_conflicts, shapes, textures
from interp.data.transforms import band_limited, edges, patch_shuffle, silhouettes
from interp.types import Batch, InputError, Preprocess

MAKERS: dict[str, Callable[[int, int, int], Batch]] = {
    **{f"shapes on {b}": lambda n, size, seed, b=b: shapes(n, size, seed, background=b) for b in BACKGROUNDS},
    "textures": textures,
    "conflicts": lambda n, size, seed: cue_conflicts(n, size, seed).batch,
    **{name: lambda n, size, seed, name=name: concepts(name, n, size, seed) for name in (*CONCEPTS, "random")},
}
ARM, REACH = 0.3, math.sqrt(1 - 0.3**2)


def lens(r: float, d: float) -> float:
    """Area common to the unit circle and one of radius r at distance d."""
    a, b = (d * d + 1 - r * r) / (2 * d), (d * d + r * r - 1) / (2 * d * r)
    triangle = math.sqrt((-d + 1 + r) * (d + 1 - r) * (d - 1 + r) * (d + 1 + r))
    return math.acos(a) + r * r * math.acos(b) - triangle / 2


AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * 0.45 * math.sin(math.pi / 5),
    "cross": 4 * (2 * ARM * REACH - ARM**2),
    "ring": math.pi * (1 - 0.36),
    "crescent": math.pi - lens(0.8, 0.45),
    "arrow": 0.7 * 0.9 + 0.5 * 1.0,
}


@pytest.fixture
def noise() -> Tensor:
    return torch.rand(5, 3, 24, 36, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_have_their_areas_and_touch_the_unit_circle(shape: str) -> None:
    at = (torch.arange(1200) + 0.5) / 500 - 1.2
    x, y = at.expand(1200, 1200), at[:, None].expand(1200, 1200)
    points = inside(shape, x, y)
    assert float(points.sum()) / 500**2 == pytest.approx(AREAS[shape], rel=4e-3)
    assert 0.98 < float(x.hypot(y)[points].max()) < 1.0 + 1e-4


@pytest.mark.parametrize("size", [32, 64, 224])
def test_masks_are_the_shapes_own_pixels(size: int) -> None:
    batch = shapes(48, size, 3)
    assert batch.masks is not None and batch.classes == SHAPES
    for image, mask in zip(batch.images, batch.masks, strict=True):
        inner, outer = image[:, mask], image[:, ~mask]
        assert bool((inner == inner[:, :1]).all()) and bool((outer == outer[:, :1]).all())
        assert float((inner[:, 0] - outer[:, 0]).abs().min()) >= 0.25


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_shapes_stand_out_from_every_background(background: str) -> None:
    batch = shapes(64, 48, 1, background=background)
    assert batch.masks is not None
    kinds = set()
    for image, mask in zip(batch.images, batch.masks, strict=True):
        inner, outer = image[:, mask].T, image[:, ~mask].T
        assert float((inner - inner[0]).abs().max()) == 0 and float((outer - inner[0]).abs().min()) >= 0.25 - 1e-6
        assert float((outer.amax(0) - outer.amin(0)).max()) <= 0.3 + 1e-6
        kinds.add(min(len(outer.unique(dim=0)), 3))
    assert kinds == {"plain": {1}, "gradient": {3}, "texture": {2}, "mixed": {1, 2, 3}}[background]


def test_mixed_backgrounds_are_the_three_by_turns() -> None:
    mixed = shapes(9, 32, 4, background="mixed")
    for k, one in enumerate(BACKGROUNDS[:3]):
        assert mixed[[k, k + 3, k + 6]].digest == shapes(9, 32, 4, background=one)[[k, k + 3, k + 6]].digest


def test_circles_in_pictures_have_the_area_of_their_width() -> None:
    batch = shapes(20, 224, 0, only="circle")
    assert batch.masks is not None and batch.labels.tolist() == [0] * 20
    widths = []
    for mask in batch.masks:
        (top, left), (bottom, right) = (t.tolist() for t in mask.nonzero().aminmax(dim=0))
        widths.append(right - left + 1)
        assert abs(widths[-1] - (bottom - top + 1)) <= 1 and left >= 0 and right < 224
        assert float(mask.sum()) == pytest.approx(math.pi / 4 * widths[-1] ** 2, rel=0.03)
    assert 0.4 * 224 - 1 <= min(widths) < 0.5 * 224 and 0.7 * 224 < max(widths) <= 0.8 * 224 + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_is_cut_off_and_all_are_turned(shape: str) -> None:
    batch = shapes(24, 96, 5, only=shape)
    assert batch.masks is not None
    areas = batch.masks.float().mean((1, 2))
    r = (areas / AREAS[shape]).sqrt()  # from the area, in shares of the side
    assert 0.19 < float(r.min()) < 0.25 and 0.35 < float(r.max()) < 0.41
    corners = [tuple(mask.nonzero().float().mean(0).round().tolist()) for mask in batch.masks]
    assert len(set(corners)) > 20


def test_n_pictures_are_the_first_of_more_and_seeds_differ() -> None:
    for name, make in MAKERS.items():
        few, many, other = make(5, 24, 7), make(19, 24, 7), make(5, 24, 8)
        assert few.digest == many[:5].digest, name
        assert few.digest != other.digest, name
        assert len({image.numpy().tobytes() for image in many.images}) == 19, name


def test_classes_take_turns() -> None:
    for batch in (shapes(19, 16, 0), textures(19, 16, 0), cue_conflicts(19, 16, 0).batch):
        assert sorted(Counter(batch.labels.tolist()).values()) == [2] * 5 + [3] * 3 and len(batch.classes) == 8
    assert textures(1, 16, 0).masks is None


def test_a_picture_is_the_same_at_every_size() -> None:
    for make in (shapes, textures):
        small, large = make(16, 32, 2), make(16, 160, 2)
        at = large.images[..., 2::5, 2::5]  # centres of the small pixels
        assert float((at - small.images).abs().amax(1).gt(1e-5).float().mean()) < 2e-3  # but for ties on an outline


@pytest.mark.parametrize(("n", "size"), [(0, 32), (1, 15), (-3, 32)])
def test_no_pictures_and_tiny_ones_are_refused(n: int, size: int) -> None:
    for make in (shapes, textures, cue_conflicts):
        with pytest.raises(InputError, match=rf"{n} pictures of {size}×{size} pixels .* at least 1 of 16×16"):
            make(n, size, 0)
    with pytest.raises(InputError, match="'clouds' cannot be drawn; expected one of"):
        shapes(1, 32, 0, background="clouds")
    with pytest.raises(InputError, match="'heart' on 'plain' cannot be drawn"):
        shapes(1, 32, 0, only="heart")


def test_textures_are_two_colours_apart() -> None:
    batch = textures(40, 64, 0)
    for image in batch.images:
        first, second = image.flatten(1).T.unique(dim=0)
        assert float((first - second).abs().min()) >= 0.3 - 1e-6
        share = float((image == first[:, None, None]).all(0).float().mean())
        assert 0.2 < share < 0.8


def test_stripes_are_constant_along_themselves_and_periodic_across() -> None:
    draws = torch.rand(6, DRAWS, generator=torch.Generator().manual_seed(1))
    rows, columns = (pattern(f"{way} stripes", 240, draws) for way in ("horizontal", "vertical"))
    assert (rows == rows[:, :, :1]).all() and (columns == columns[:, :1]).all()
    draws[:, 0], draws[:, 1:3] = 1.0, 0.0  # six cycles in the picture: a period is 40 pixels, and 80 for two rows of bricks
    for name in ("horizontal stripes", "vertical stripes", "dots", "checks", "bricks"):
        one, period = pattern(name, 240, draws), 80 if name == "bricks" else 40
        assert (one[..., period:] == one[..., :-period]).float().mean() > 0.999, name
        assert (one[:, period:] == one[:, :-period]).float().mean() > 0.999, name
    rising = pattern("diagonal stripes", 240, draws)
    both = (rising[:, 7:, 7:] == rising[:, :-7, :-7]).all((1, 2)), (rising[:, 7:, :-7] == rising[:, :-7, 7:]).all((1, 2))
    assert (both[0] ^ both[1]).all() and both[0].any() and both[1].any()
    dots, checks = pattern("dots", 240, draws), pattern("checks", 240, draws)
    assert float(dots[0].float().mean()) == pytest.approx(math.pi * 0.36**2, rel=0.02) and float(checks[0].float().mean()) == 0.5


def test_conflicts_show_shape_by_texture_alone() -> None:
    found = cue_conflicts(112, 64, 0)
    batch = found.batch
    assert batch.masks is not None and found.texture_classes == TEXTURES and batch.classes == SHAPES
    pairs = Counter(zip(batch.labels.tolist(), found.textures.tolist(), strict=True))
    assert set(pairs) == {(a, b) for a in range(8) for b in range(8) if a != b} and set(pairs.values()) == {2}
    for image, mask in zip(batch.images, batch.masks, strict=True):
        inner, outer = image[:, mask], image[:, ~mask]
        assert torch.allclose(inner.mean(1), outer[:, 0], atol=1e-5) and float((outer - outer[:, :1]).abs().max()) == 0
        assert len(inner.T.unique(dim=0)) == 2
    agreeing = cue_conflicts(16, 32, 0, agree=True)
    assert torch.equal(agreeing.textures, agreeing.batch.labels)
    with pytest.raises(InputError, match=r"16 images came with textures of shape \(15,\)"):
        Conflict(agreeing.batch, agreeing.textures[:15], TEXTURES)


def test_silhouettes_are_the_masks() -> None:
    batch = shapes(9, 32, 0)
    found = silhouettes(batch)
    assert batch.masks is not None and torch.equal(found.images, 1 - batch.masks[:, None].float().expand(-1, 3, -1, -1))
    assert torch.equal(found.labels, batch.labels) and found.ids == batch.ids
    with pytest.raises(InputError, match="silhouettes need masks and the images have none"):
        silhouettes(textures(2, 32, 0))


def test_edges_are_thin_and_lie_on_the_outline() -> None:
    batch = silhouettes(shapes(16, 96, 0))
    found = edges(batch)
    assert batch.masks is not None and set(found.images.unique().tolist()) == {0.0, 1.0} and found.masks is batch.masks
    lines = found.images[:, 0] == 0
    m = batch.masks[:, None].float()
    pool = torch.nn.functional.max_pool2d
    near = (pool(m, 5, 1, 2) > -pool(-m, 5, 1, 2))[:, 0]  # within two pixels of the outline
    border = (pool(m, 3, 1, 1) > m)[:, 0]  # pixels just outside
    assert not (lines & ~near).any() and torch.equal(found.labels, batch.labels)
    ratio = lines.sum((1, 2)) / border.sum((1, 2))
    assert float(ratio.min()) > 0.7 and float(ratio.max()) < 1.3


def test_a_straight_step_gives_one_line_and_a_plain_image_none() -> None:
    images = torch.full((2, 3, 40, 40), 0.3)
    images[0, :, :, 20:] = 0.8
    lines = edges(Batch(images, torch.zeros(2, dtype=torch.int64))).images[:, 0] == 0
    assert lines[0].sum(1).tolist() == [1] * 40 and bool(lines[0, :, 19:21].any(1).all()) and not lines[1].any()
    images[0, :, :, 20:] = torch.linspace(0.35, 0.8, 40)[:, None]  # a line that gets stronger downwards
    step = Batch(images, torch.zeros(2, dtype=torch.int64))
    for low, high, rows in ((0.05, 0.9, 40), (0.5, 0.9, 22), (0.9, 0.9, 5)):  # contrast reaches half the largest at row 17 of 39
        drawn = (edges(step, low=low, high=high).images[0, 0] == 0)[:, 18:22].any(1)
        assert abs(int(drawn.sum()) - rows) <= 1 and bool(drawn[-rows + 1 :].all())
    with pytest.raises(InputError, match="expected sigma > 0, 0 < low ≤ high ≤ 1"):
        edges(Batch(images, torch.zeros(2, dtype=torch.int64)), low=0.5, high=0.2)


def test_shuffled_patches_are_the_patches(noise: Tensor) -> None:
    found = patch_shuffle(noise, 4, 0)
    assert torch.equal(found.flatten(2).sort(2).values, noise.flatten(2).sort(2).values) and not torch.equal(found, noise)

    def patches(x: Tensor) -> set[bytes]:
        return {p.contiguous().numpy().tobytes() for p in x.unfold(1, 6, 6).unfold(2, 9, 9).permute(1, 2, 0, 3, 4).flatten(0, 1)}

    orders = set()
    for before, after in zip(noise, found, strict=True):
        assert patches(before) == patches(after) and len(patches(after)) == 16
    places = torch.arange(24 * 36).float().view(1, 1, 24, 36).expand(5, 3, 24, 36) / (24 * 36)
    orders = {image.contiguous().numpy().tobytes() for image in patch_shuffle(places, 4, 0)}
    assert len(orders) == 5  # an own order for each image
    assert torch.equal(patch_shuffle(noise[:2], 4, 0), found[:2]) and torch.equal(patch_shuffle(noise, 1, 0), noise)
    assert not torch.equal(patch_shuffle(noise, 4, 1), found)
    for grid in (0, 5, 9):
        with pytest.raises(InputError, match=rf"36×24 pixels do not fall into {grid}×{grid} equal patches"):
            patch_shuffle(noise, grid, 0)


@pytest.mark.parametrize("limit", [0.03, 0.1, 0.25, 0.6])
def test_two_bands_add_up_to_the_image_and_its_energy(limit: float, noise: Tensor) -> None:
    low, high = band_limited(noise, high=limit, clip=False), band_limited(noise, low=limit, clip=False)
    mean = noise.mean((2, 3), keepdim=True)
    assert torch.allclose(low + high, noise + mean, atol=1e-5)
    assert torch.allclose(low.mean((2, 3), keepdim=True), mean, atol=1e-6)
    assert torch.allclose(high.mean((2, 3), keepdim=True), mean, atol=1e-6)

    def energy(x: Tensor) -> Tensor:
        return (x - mean).square().sum((2, 3))

    assert torch.allclose(energy(low) + energy(high), energy(noise), rtol=1e-4)  # Parseval
    assert torch.allclose(band_limited(low, high=limit, clip=False), low, atol=1e-5)


def test_band_limits_have_limits(noise: Tensor) -> None:
    assert torch.equal(band_limited(noise), noise)
    assert torch.allclose(band_limited(noise, low=0.0, high=0.8), noise, atol=1e-5)
    assert torch.allclose(band_limited(noise, high=1e-3), noise.mean((2, 3), keepdim=True).expand_as(noise), atol=1e-5)
    clipped = band_limited(noise, low=0.3)
    assert torch.equal(clipped, band_limited(noise, low=0.3, clip=False).clamp(0, 1)) and 0 <= clipped.min() <= clipped.max() <= 1
    wave = 0.5 + 0.4 * torch.sin(2 * math.pi * torch.arange(40) / 8).expand(1, 3, 40, 40)  # 0.125 cycles per pixel
    for low, high, kept in ((0.12, 0.13, True), (None, 0.124, False), (0.126, None, False), (0.12, None, True)):
        assert torch.allclose(band_limited(wave, low=low, high=high), wave if kept else torch.full_like(wave, 0.5), atol=1e-5)
    for bad in ((0.2, 0.2), (0.3, 0.1), (-0.1, None), (None, 0.0)):
        with pytest.raises(InputError, match="is empty; expected 0 ≤ low < high"):
            band_limited(noise, low=bad[0], high=bad[1])


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_what_they_are_called(name: str) -> None:
    (h0, h1), (s0, s1), (v0, v1) = COLOURS[name]
    for image in concepts(name, 12, 32, 0).images:
        for r, g, b in image.flatten(1).T.unique(dim=0).tolist():
            h, s, v = colorsys.rgb_to_hsv(r, g, b)
            assert s0 - 1e-4 <= s <= s1 + 1e-4 and v0 - 1e-4 <= v <= v1 + 1e-4
            assert name in ("black", "white") or (h - h0 + 1e-4) % 1 <= h1 - h0 + 2e-4
    strongest = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}.get(name)
    if strongest:
        mean = concepts(name, 12, 32, 0).images.mean((0, 2, 3))
        assert set(mean.argsort(descending=True)[: len(strongest)].tolist()) == set(strongest)


def test_concepts_are_all_there_and_named() -> None:
    for name in (*CONCEPTS, "random"):
        batch = concepts(name, 3, 32, 0)
        assert batch.classes == (name,) and batch.labels.tolist() == [0, 0, 0] and batch.images.shape == (3, 3, 32, 32)
        assert (batch.masks is not None) == (name in SHAPES)
    assert {t for group in PATTERNS.values() for t in group} == set(TEXTURES) and len(set(CONCEPTS)) == len(CONCEPTS) == 30
    with pytest.raises(InputError, match="no concept 'wings'; expected random or one of red, "):
        concepts("wings", 1, 32, 0)


@pytest.mark.parametrize("name", STRIPES)
def test_stripes_are_as_wide_as_they_are_called_and_lie_in_all_directions(name: str) -> None:
    """The strongest wave of each picture: its frequency in periods a picture, and its direction."""
    low, high = STRIPES[name]
    images = concepts(name, 40, 96, 0).images
    tones = (images == images[..., :1, :1]).all(1).float()
    power = torch.fft.fftn(tones - tones.mean((1, 2), keepdim=True), s=(384, 384), dim=(1, 2)).abs()[:, :, :192]
    at = power.flatten(1).argmax(1)
    y, x = (at // 192 + 192) % 384 - 192, at % 192
    periods = x.double().hypot(y.double()) / 4
    assert low - 0.5 < periods.min() < periods.max() < high + 0.5
    assert torch.histc(torch.atan2(y.double(), x.double()), 4).min() >= 4


def test_arcs_and_polygons_differ_in_their_strokes_alone() -> None:
    curved, angular = concepts("curved", 24, 96, 0), concepts("angular", 24, 96, 0)
    for a, b in zip(curved.images, angular.images, strict=True):
        assert all(torch.equal(x.unique(), y.unique()) for x, y in zip(a, b, strict=True))  # the same two colours
        assert not torch.equal(a, b)
    ink = [float((x == x[..., :1, :1]).all(1).float().mean()) for x in (curved.images, angular.images)]
    assert abs(ink[0] - ink[1]) < 0.05


@pytest.mark.parametrize("corners", [3, 4, 5])
def test_polygons_have_straight_sides_between_corners_on_the_circle(corners: int) -> None:
    angle = torch.linspace(0, 1 / corners, 51, dtype=torch.float64)[:-1]  # along the first side
    r = polygon(angle, torch.tensor(corners, dtype=torch.float64))
    assert float(r[0]) == pytest.approx(1) and float(r.min()) == pytest.approx(math.cos(math.pi / corners))
    x, y = r * torch.cos(2 * math.pi * angle), r * torch.sin(2 * math.pi * angle)
    end = math.cos(2 * math.pi / corners), math.sin(2 * math.pi / corners)
    assert torch.allclose((x - 1) * end[1] - y * (end[0] - 1), torch.zeros_like(x), atol=1e-12)  # on the line between them


def test_random_pictures_have_most_energy_at_low_frequencies() -> None:
    images = concepts("random", 16, 64, 0).images
    centred = images - images.mean((2, 3), keepdim=True)
    low = band_limited(centred, high=1 / 16, clip=False).square().sum()
    assert 0.75 < float(low / centred.square().sum()) < 1 and images.amin() == 0 and images.amax() == 1


def folder(root: Path, *names: str, size: int = 40) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (i, 2 * i, 3 * i)).save(path)
    return root


def test_conflict_files_say_both_classes(tmp_path: Path) -> None:
    names = ("cat/cat4-dog2.png", "cat/cat4-cat1.png", "airplane/airplane1-bicycle2.png", "airplane/airplane10-oven3.png")
    found = cue_conflict_folder(folder(tmp_path, *names))
    assert found.batch.classes == found.texture_classes == CLASSES16
    assert found.batch.ids == ("airplane/airplane1-bicycle2.png", "airplane/airplane10-oven3.png", "cat/cat4-dog2.png")
    assert [CLASSES16[k] for k in found.batch.labels] == ["airplane", "airplane", "cat"]
    assert [CLASSES16[k] for k in found.textures] == ["bicycle", "oven", "dog"]
    assert (found.batch.images[:, 0, 0, 0] * 255).round().tolist() == [2, 3, 0] and found.batch.masks is None
    few = cue_conflict_folder(tmp_path, n=2, preprocess=Preprocess(32, 36))
    assert few.batch.ids == (found.batch.ids[0], found.batch.ids[2]) and few.batch.images.shape == (2, 3, 32, 32)
    own = cue_conflict_folder(folder(tmp_path / "own", "star/star1-dots1.png", "big cat/big cat1-star2.png"))
    assert own.batch.classes == ("big cat", "dots", "star") and own.textures.tolist() == [2, 1]


def test_bad_conflict_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*missing"):
        cue_conflict_folder(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no cue conflicts"):
        cue_conflict_folder(folder(tmp_path / "same", "cat/cat1-cat2.png"))
    with pytest.raises(InputError, match=r"cat1\.png names no two classes; expected SHAPEn-TEXTUREm\.png"):
        cue_conflict_folder(folder(tmp_path / "plain", "cat/cat1.png"))
    with pytest.raises(InputError, match="says dog and lies in the folder cat"):
        cue_conflict_folder(folder(tmp_path / "astray", "cat/dog1-cat1.png"))
    folder(tmp_path / "sizes", "cat/cat1-dog1.png")
    folder(tmp_path / "sizes", "cat/cat2-dog1.png", size=48)
    with pytest.raises(InputError, match="have several sizes; give a model's preprocess"):
        cue_conflict_folder(tmp_path / "sizes")


def test_the_sixteen_classes_are_imagenets() -> None:
    from timm.data import ImageNetInfo

    assert tuple(IMAGENET16) == CLASSES16 == tuple(sorted(CLASSES16))
    everything = [i for indices in IMAGENET16.values() for i in indices]
    assert len(everything) == len(set(everything)) == 207
    assert {c: len(i) for c, i in IMAGENET16.items() if len(i) > 8} == {"bird": 49, "dog": 109}
    words = {
        "airplane": ["airliner"], "bear": ["bear"], "bicycle": ["bicycle", "bike"], "clock": ["clock"], "elephant": ["elephant"],
        "keyboard": ["keyboard"], "knife": ["cleaver"], "oven": ["rotisserie"], "bottle": ["bottle", "jug"],
        "cat": ["cat", "puma"], "chair": ["chair", "throne"], "boat": ["boat", "canoe", "yawl"], "car": ["car", "convertible"],
        "truck": ["truck", "van", "wagon"],
    }  # fmt: skip
    info = ImageNetInfo()
    for name, known in words.items():
        for i in IMAGENET16[name]:
            assert any(word in info.index_to_description(i) for word in known), (name, i)


def test_sixteen_scores_are_means() -> None:
    p = torch.zeros(3, 1000)
    p[0, 404], p[1, list(IMAGENET16["dog"])], p[2] = 0.7, 1 / 109, 1 / 1000
    scores = sixteen(p)
    assert scores.shape == (3, 16) and scores[0].tolist() == pytest.approx([0.7] + [0] * 15)
    assert scores[1].argmax() == CLASSES16.index("dog") and float(scores[1].max()) == pytest.approx(1 / 109)
    assert torch.allclose(scores[2], torch.full((16,), 1e-3))
    with pytest.raises(InputError, match=r"shape \(3, 10\); the 16 classes need \(n, 1000\)"):
        sixteen(p[:, :10])
