"""Tables of attributes: complete, consistent, and telling all classes apart; and a user's own, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp.data.attributes import BREEDS, KINDS, SAME, Table, attributes, tables, telling
from interp.data.labels import CIFAR10
from interp.types import InputError

TABLES = ["cifar10", "imagenette"]


def test_the_tables_lie_beside_their_reader() -> None:
    assert list(tables()) == [*TABLES, "awa2"] and tables()["cifar10"]["classes"] == list(CIFAR10)
    assert all(set(table) == {"classes", "attributes"} for table in tables().values())


@pytest.mark.parametrize("name", TABLES)
def test_every_attribute_splits_the_classes_and_no_two_alike(name: str) -> None:
    table = tables()[name]
    classes = tuple(table["classes"])
    for having in table["attributes"].values():
        assert set(having) <= set(classes) and len(set(having)) == len(having)
    names, has, known = attributes(classes)
    assert known.all() and known.shape == has.shape
    assert has.dtype == torch.bool and has.shape == (len(names), len(classes)) and len(set(names)) == len(names) >= 15
    assert has.any(1).all() and not has.all(1).any()
    assert len({tuple(row) for row in torch.cat((has, ~has)).tolist()}) == 2 * len(names)  # nor the contrary of another
    assert len({tuple(column) for column in has.T.tolist()}) == len(classes)  # every pair of classes differs


@pytest.mark.parametrize("name", TABLES)
def test_no_class_of_a_table_is_in_another(name: str) -> None:
    others = {c for key in TABLES if key != name for c in tables()[key]["classes"]}
    assert not others & set(tables()[name]["classes"])


def test_known_answers() -> None:
    names, has, _ = attributes(CIFAR10)

    def owners(attribute: str) -> set[str]:
        return {c for c, yes in zip(CIFAR10, has[names.index(attribute)].tolist(), strict=True) if yes}

    assert owners("animal") == {"bird", "cat", "deer", "dog", "frog", "horse"}
    assert owners("fur") == owners("four legs") - {"frog"} and owners("wings") == {"airplane", "bird"}
    assert owners("carries people") - {"horse"} == set(CIFAR10) - owners("animal")
    assert owners("fur") | owners("feathers") | owners("moist skin") == owners("animal")
    assert owners("antlers") < owners("hooves") < owners("fur")


def test_columns_follow_the_classes_asked_for() -> None:
    names, has, _ = attributes(CIFAR10)
    order = [9, 3, 3, 0]
    some, part, _ = attributes(tuple(CIFAR10[i] for i in order))
    assert some == names and torch.equal(part, has[:, order])


@pytest.mark.parametrize("classes", [(), ("cat", "unicorn"), ("cat", "tench"), ("Cat",)])
def test_classes_without_a_table_are_refused_with_those_there_are(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"expected classes of one of: cifar10 \(airplane, .*; imagenette \(tench"):
        attributes(classes)


ANIMALS = {
    "antelope": "0110", "grizzly+bear": "1010", "german+shepherd": "1101", "dalmatian": "1011", "persian+cat": "1100",
    "siamese+cat": "1001", "deer": "0111",
}  # fmt: skip
PREDICATES = ("furry", "stripes", "spots", "domestic")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A folder in the form of Animals with Attributes 2, of made-up rows."""
    for name, of in (("classes.txt", ANIMALS), ("predicates.txt", PREDICATES)):
        (tmp_path / name).write_text("".join(f"{k:6}\t{word} \n" for k, word in enumerate(of, 1)))
    (tmp_path / "predicate-matrix-binary.txt").write_text("\n".join(" ".join(row) for row in ANIMALS.values()) + "\n")
    return tmp_path


def rows(classes: tuple[str, ...], source: Path) -> list[str]:
    """Of each class its row, ? where it is left open."""
    _, has, known = attributes(classes, source=str(source))
    return [
        "".join("?10"[2 - int(h) if k else 0] for h, k in zip(*pair, strict=True)) for pair in zip(has.T, known.T, strict=True)
    ]


def test_a_folder_of_animals_is_read_by_name(animals: Path) -> None:
    assert attributes(("Deer", "antelope"), source=str(animals)).names == PREDICATES
    asked = ("Deer", "german_shepherd", "Grizzly Bear", "frog")
    assert rows(asked, animals) == ["0111", "1101", "1010", "????"]


def test_a_kind_has_what_all_of_its_breeds_have_and_is_open_where_they_differ(animals: Path) -> None:
    assert rows(("cat", "dog", "Pug", "Siamese", "airplane", "bear"), animals) == ["1?0?", "1??1", "1??1", "1001", "????", "1010"]
    assert rows(CIFAR10, animals) == [*["????"] * 3, "1?0?", "0111", "1??1", *["????"] * 4]


def test_kinds_and_breeds_are_plain_names_of_one_kind() -> None:
    named = [*BREEDS["cat"], *BREEDS["dog"], *KINDS, *SAME, *(name for of in KINDS.values() for name in of)]
    assert all(name == name.lower() and not set("_+-") & set(name) for name in named)
    assert not set(BREEDS["cat"]) & set(BREEDS["dog"]) and set(BREEDS) <= set(KINDS)


def test_a_file_of_ones_own_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('classes = ["Fire_truck", "cat", "dog"]\n[attributes]\nred = ["Fire_truck"]\nalive = ["cat", "dog"]\n')
    assert rows(("dog", "fire truck", "ship", "Egyptian Mau"), path) == ["01", "10", "??", "01"]
    for text, match in (
        ("classes = [", "is no TOML"),
        ("classes = ['cat']", "has classes; expected"),
        ("classes = ['cat']\n[attributes]\nred = 'cat'", "expected `classes`"),
        ("classes = ['cat']\n[attributes]\nred = ['dog']", "gives attributes to dog"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            attributes(("cat", "dog"), source=str(path))


def test_the_bundled_animals_have_the_published_attributes_where_breeds_agree() -> None:
    """Facts of the matrix of Animals with Attributes 2: 85 predicates, the first of them colours, the last `domestic`."""
    names, has, known = attributes(CIFAR10, source="awa2")
    assert len(names) == 85 and names[:3] == ("black", "white", "blue") and names[-1] == "domestic"
    assert [c for c, of in zip(CIFAR10, known.T.tolist(), strict=True) if any(of)] == ["cat", "deer", "dog", "horse"]
    deer, horse, cat, dog = (
        {n for n, h, k in zip(names, has[:, c], known[:, c], strict=True) if h and k}
        for c in map(CIFAR10.index, ("deer", "horse", "cat", "dog"))
    )
    assert len(deer) == 33 and len(horse) == 34  # sums of the published rows
    assert {"hooves", "horns", "timid"} <= deer and {"hooves", "domestic"} <= horse and "horns" not in horse
    assert {"paws", "tail", "domestic"} <= cat & dog and not {"hooves", "horns"} & (cat | dog)
    size, cat_known = names.index("small"), int(known[:, CIFAR10.index("cat")].sum())
    assert known[size, CIFAR10.index("cat")] and not known[size, CIFAR10.index("dog")]  # a Chihuahua is, a German shepherd not
    assert attributes(("deer", "horse")).names == attributes(CIFAR10).names != attributes(("lion", "ox")).names == names
    imagenet = (
        "n02106662 German shepherd, German shepherd dog, alsatian",
        "n02124075 Egyptian cat",
        "n01443537 goldfish, Carassius",
    )
    _, has, known = attributes(imagenet, source="awa2")
    assert known.sum(0).tolist() == [85, cat_known, 0] and 60 < cat_known < 85


def test_attributes_that_the_classes_cannot_tell_apart_are_one() -> None:
    names, has, known = attributes(CIFAR10, source="awa2")
    told = telling(Table(names, has, known))
    assert len({(*h, *k) for h, k in zip(told.has.tolist(), told.known.tolist(), strict=True)}) == len(told.names) < 20
    assert "hooves, longneck, vegetation, grazer, fields" in told.names  # of deer and horses, not of cats and dogs
    assert not any("walks" in name or "hibernate" in name for name in told.names)  # all do, none does
    for name in TABLES:
        table = attributes(tuple(tables()[name]["classes"]))
        assert telling(table).names == table.names
    with pytest.raises(InputError, match=r"none of swims tells the classes apart"):
        telling(Table(("swims",), torch.tensor([[True, True]]), torch.ones(1, 2, dtype=torch.bool)))


def test_tables_that_do_not_fit_are_refused(animals: Path) -> None:
    with pytest.raises(
        InputError, match=r"says something of deer of the classes .*; attributes written .* antelope, grizzly bear"
    ):
        attributes(("deer", "ship"), source=str(animals))
    (animals / "predicate-matrix-binary.txt").write_text("0 1 0\n1 2 0\n")
    with pytest.raises(InputError, match="has 2 rows of 3 values; expected 7 rows, one per class, of 4 values 0 or 1"):
        attributes(CIFAR10, source=str(animals))
    (animals / "predicates.txt").unlink()
    with pytest.raises(InputError, match=r"lacks predicates\.txt; expected"):
        attributes(CIFAR10, source=str(animals))
    with pytest.raises(InputError, match="there is no table of attributes"):
        attributes(CIFAR10, source=str(animals / "none.toml"))
