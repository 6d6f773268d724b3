"""The plain types: what they refuse, what survives a round trip, what identifies a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.types import Batch, Card, InputError, Number, Preprocess, Threat, fraction

PLAIN = Card("a", "resnet_cifar", 3, Preprocess(32, 32))
FULL = Card(
    "xcit_ε",
    "xcit_p4",
    2,
    Preprocess(48, 56, "bilinear", (0.4914, 0.4822, 1 / 3), (0.1, 0.2, 0.3), "bgr"),
    {"embed_dim": 64, "strides": [1, 2, 2], "variant": "mobilevit_xs", "share": 0.1},
    ("Katze 🐈", 'a "dog"\n= 1'),
    weights="xcit.safetensors",
    sha256="ab" * 32,
    origin="interp train",
    training="adversarial, 1.25·ε",
    trained={"recipe": "recipes/xcit.toml", "command": "interp train 'a b.toml'", "minutes": 39, "epochs": 4.5},
    threat=Threat("linf", 8 / 255),
    numbers=(Number("clean", 0.53, 10000, 0.52, 0.54, "here"), Number("pgd20", 1 / 3, 1000, 0.3, 0.36, "L∞, 20 steps")),
    licence="Apache-2.0",
    citation="O'Hara & Müller",
)


@pytest.mark.parametrize("card", [PLAIN, FULL, dataclasses.replace(FULL, threat=None), dataclasses.replace(FULL, numbers=())])
def test_a_card_survives_toml(card: Card) -> None:
    assert Card.from_toml(card.to_toml()) == card


@given(st.text(), st.floats(0, 1), st.lists(st.text(), min_size=1, max_size=3))
def test_any_words_and_numbers_survive_toml(text: str, value: float, labels: list[str]) -> None:
    number = Number(text, value, 1, 0.0, value, text)
    card = Card(text, text, len(labels), Preprocess(mean=(value, 0, 0)), {"x": value}, tuple(labels), numbers=(number,))
    try:
        written = card.to_toml()
        written.encode()
    except UnicodeEncodeError:
        return  # lone surrogates have no place in a text file
    assert Card.from_toml(written) == card


def test_a_card_names_its_classes_and_numbers() -> None:
    assert FULL.label(0) == "Katze 🐈" and PLAIN.label(2) == "2"
    found = FULL.number("pgd20")
    assert found is not None and found.n == 1000 and FULL.number("clean20") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id = ", "not a model card"),
        ("<html>", "not a model card"),
        ('id = "a"\narch = "b"\nnum_classes = 3', "'preprocess'"),
        (PLAIN.to_toml().replace("num_classes", "classes"), "classes"),
        (PLAIN.to_toml().replace("size = 32", "sizes = 32"), "sizes"),
        (PLAIN.to_toml() + "\n[threat]\nnorm = 'linf'", "eps"),
        (PLAIN.to_toml().replace("[trained]", "[trained_]"), "trained_"),
        ('id="a"\narch="b"\nnum_classes=3\ntrained="9 minutes"\n[preprocess]', "trained is '9 minutes'; expected dict"),
        (PLAIN.to_toml().replace("resize = 32", "resize = 32\ncolour = 'red'"), "colour"),
        ('id="a"\narch="b"\nnum_classes=3\n[preprocess]\nmean=["a", 1, 2]', "could not convert"),
        ('id="a"\narch="b"\nnum_classes=3\n[preprocess]\nstd=[0.0, 1.0, 1.0]', "std above zero"),
    ],
)
def test_what_is_no_card_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Card.from_toml(text)


def test_a_card_from_before_its_run_was_told_is_read() -> None:
    old = PLAIN.to_toml().replace("[trained]\n", "")
    assert "trained" not in old and Card.from_toml(old) == PLAIN and PLAIN.trained == {}


def test_labels_must_be_as_many_as_classes() -> None:
    with pytest.raises(InputError, match=r"'a' names 2 labels for 3 classes"):
        dataclasses.replace(PLAIN, labels=("x", "y"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channels": "gbr"}, "channel order is 'gbr'; expected 'rgb' or 'bgr'"),
        ({"interpolation": "lanczos"}, "'lanczos'; expected 'nearest', 'bilinear' or 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "three values each"),
        ({"std": (1, 1, 1, 1)}, "three values each"),
        ({"std": (1, 0, 1)}, "std above zero"),
        ({"std": (1, -1, 1)}, "std above zero"),
    ],
)
def test_preprocess_refuses_what_makes_no_sense(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Preprocess(**fields)


def test_preprocess_from_lists_equals_that_from_tuples() -> None:
    assert Preprocess(32, mean=[0, 1, 0]) == Preprocess(32, mean=(0.0, 1.0, 0.0))  # type: ignore[arg-type]
    assert hash(Preprocess(32, mean=[0, 1, 0])) == hash(Preprocess(32, mean=(0.0, 1.0, 0.0)))  # type: ignore[arg-type]


def batch(n: int = 7, *, masks: bool = False, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, 5, 6, generator=g) < 0.5 if masks else None
    labels = torch.randint(0, 3, (n,), generator=g)
    return Batch(torch.rand(n, 3, 5, 6, generator=g), labels, tuple(f"i{i}" for i in range(n)), ("a", "b", "c"), mask)


GOOD: dict[str, Any] = {"images": torch.rand(2, 3, 4, 4), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"images": torch.rand(3, 4, 4)}, r"shape \(3, 4, 4\); expected \(n, 3, height, width\)"),
        ({"images": torch.rand(2, 1, 4, 4)}, r"shape \(2, 1, 4, 4\)"),
        ({"images": torch.rand(0, 3, 4, 4), "labels": torch.zeros(0)}, "n ≥ 1"),
        ({"images": torch.rand(2, 3, 4, 4).double()}, "finite float32 in"),
        ({"images": torch.randint(0, 255, (2, 3, 4, 4))}, "divide 8-bit images by 255"),
        ({"images": torch.full((2, 3, 4, 4), 1.001)}, "finite float32 in"),
        ({"images": torch.full((2, 3, 4, 4), -0.001)}, "do not normalise"),
        ({"images": torch.full((2, 3, 4, 4), torch.nan)}, "finite"),
        ({"labels": torch.tensor([0, 1, 2])}, r"2 images came with labels of shape \(3,\); expected \(2,\)"),
        ({"labels": torch.zeros(2, 10)}, r"labels of shape \(2, 10\)"),
        ({"ids": ("a",)}, "2 images came with 1 ids"),
        ({"masks": torch.ones(2, 4, 5, dtype=torch.bool)}, r"masks have shape \(2, 4, 5\); expected \(2, 4, 4\)"),
        ({"masks": torch.ones(2, 1, 4, 4, dtype=torch.bool)}, r"masks have shape \(2, 1, 4, 4\)"),
    ],
)
def test_a_batch_refuses_what_does_not_fit(fields: dict[str, Any], says: str) -> None:
    Batch(**GOOD)
    with pytest.raises(InputError, match=says):
        Batch(**(GOOD | fields))


def test_images_without_ids_are_numbered() -> None:
    assert Batch(**GOOD).ids == ("0", "1")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("masks", [False, True])
def test_chunks_put_together_are_the_batch(size: int, masks: bool) -> None:
    whole = batch(masks=masks)
    parts = list(whole.chunks(size))
    assert [len(p) for p in parts] == [min(size, 7 - i) for i in range(0, 7, size)]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
    assert sum((p.ids for p in parts), ()) == whole.ids and all(p.classes == whole.classes for p in parts)
    if masks:
        assert torch.equal(torch.cat([p.masks for p in parts if p.masks is not None]), whole.masks)


def test_indexing_takes_the_same_rows_of_everything() -> None:
    whole = batch(masks=True)
    some = whole[[5, 0, 5]]
    assert some.ids == ("i5", "i0", "i5") and torch.equal(some.images[1], whole.images[0])
    assert some.masks is not None and whole.masks is not None and torch.equal(some.masks[0], whole.masks[5])
    assert whole[-2:].ids == ("i5", "i6") and whole[::3].labels.tolist() == whole.labels[::3].tolist()


@pytest.mark.parametrize("rows", [slice(0, 0), []])
def test_no_rows_are_no_batch(rows: Any) -> None:
    with pytest.raises(InputError, match="n ≥ 1"):
        batch()[rows]


@pytest.mark.parametrize("masks", [False, True])
def test_the_digest_changes_with_one_pixel_label_or_mask(masks: bool) -> None:
    whole = batch(masks=masks)
    images, labels = whole.images.clone(), whole.labels.clone()
    images[3, 1, 2, 2] = torch.nextafter(images[3, 1, 2, 2], torch.tensor(2.0 if images[3, 1, 2, 2] < 0.5 else 0.0))
    labels[6] += 1
    others = [
        dataclasses.replace(whole, images=images),
        dataclasses.replace(whole, labels=labels),
        whole[[1, 0, 2, 3, 4, 5, 6]],
        whole[:6],
        Batch(whole.images.transpose(2, 3).reshape(7, 3, 5, 6), whole.labels, masks=whole.masks),
        Batch(whole.images.view(7, 3, 6, 5), whole.labels, masks=None if whole.masks is None else whole.masks.view(7, 6, 5)),
    ]
    if whole.masks is not None:
        others += [dataclasses.replace(whole, masks=~whole.masks), dataclasses.replace(whole, masks=None)]
    assert len({whole.digest, *(o.digest for o in others)}) == 1 + len(others)


def test_the_digest_does_not_depend_on_how_the_batch_was_put_together() -> None:
    whole = batch(masks=True)
    parts = list(whole.chunks(3))
    masks = torch.cat([p.masks for p in parts if p.masks is not None])
    joined = Batch(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), masks=masks)
    assert joined.digest == whole.digest == whole[:].digest
    strided = dataclasses.replace(whole, images=whole.images.to(memory_format=torch.channels_last))
    assert strided.digest == whole.digest and dataclasses.replace(whole, ids=()).digest == whole.digest


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0), (" 8 / 255 ", 8 / 255), ("-8/255", -8 / 255), ("1e-3", 0.001)],
)
def test_fractions_are_read_as_written(text: str, value: float) -> None:
    assert fraction(text) == value


@pytest.mark.parametrize("text", ["", "/", "8/", "/255", "8/0", "8/255/2", "eight", "0,03", "8:255"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a number; write ε as 8/255 or 0\.03"):
        fraction(text)
