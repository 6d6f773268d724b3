"""Tables of attributes: complete, consistent, and telling all classes apart."""

from __future__ import annotations

import pytest
import torch

from interp.data.attributes import attributes, tables
from interp.data.labels import CIFAR10
from interp.types import InputError

TABLES = ["cifar10", "imagenette"]


def test_the_tables_lie_beside_their_reader() -> None:
    assert list(tables()) == TABLES and tables()["cifar10"]["classes"] == list(CIFAR10)
    assert all(set(table) == {"classes", "attributes"} for table in tables().values())


@pytest.mark.parametrize("name", TABLES)
def test_every_attribute_splits_the_classes_and_no_two_alike(name: str) -> None:
    table = tables()[name]
    classes = tuple(table["classes"])
    for having in table["attributes"].values():
        assert set(having) <= set(classes) and len(set(having)) == len(having)
    names, has = attributes(classes)
    assert has.dtype == torch.bool and has.shape == (len(names), len(classes)) and len(set(names)) == len(names) >= 15
    assert has.any(1).all() and not has.all(1).any()
    assert len({tuple(row) for row in torch.cat((has, ~has)).tolist()}) == 2 * len(names)  # nor the contrary of another
    assert len({tuple(column) for column in has.T.tolist()}) == len(classes)  # every pair of classes differs


@pytest.mark.parametrize("name", TABLES)
def test_no_class_of_a_table_is_in_another(name: str) -> None:
    others = {c for key, table in tables().items() if key != name for c in table["classes"]}
    assert not others & set(tables()[name]["classes"])


def test_known_answers() -> None:
    names, has = attributes(CIFAR10)

    def owners(attribute: str) -> set[str]:
        return {c for c, yes in zip(CIFAR10, has[names.index(attribute)].tolist(), strict=True) if yes}

    assert owners("animal") == {"bird", "cat", "deer", "dog", "frog", "horse"}
    assert owners("fur") == owners("four legs") - {"frog"} and owners("wings") == {"airplane", "bird"}
    assert owners("carries people") - {"horse"} == set(CIFAR10) - owners("animal")
    assert owners("fur") | owners("feathers") | owners("moist skin") == owners("animal")
    assert owners("antlers") < owners("hooves") < owners("fur")


def test_columns_follow_the_classes_asked_for() -> None:
    names, has = attributes(CIFAR10)
    order = [9, 3, 3, 0]
    some, part = attributes(tuple(CIFAR10[i] for i in order))
    assert some == names and torch.equal(part, has[:, order])


@pytest.mark.parametrize("classes", [(), ("cat", "unicorn"), ("cat", "tench"), ("Cat",)])
def test_classes_without_a_table_are_refused_with_those_there_are(classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"expected classes of one of: cifar10 \(airplane, .*; imagenette \(tench"):
        attributes(classes)
