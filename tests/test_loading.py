"""Files from anywhere: what is accepted computes what the original computes, what is refused runs nothing and says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import interp
from interp.data.labels import CIFAR10
from interp.loading.detect import mismatch, num_classes
from interp.loading.read import read, sha256_of
from interp.models.build import build
from interp.models.load import by_name, check_labels, named_apart, shipped
from interp.models.model import Model
from interp.models.normalise import NORMALISERS
from interp.types import Batch, Card, InputError, Preprocess

Make = Callable[..., Model]


def weights(model: Model) -> dict[str, Tensor]:
    """The bare network's tensors as other programs write them."""
    return {k: v.contiguous() for k, v in model.net.state_dict().items()}


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{k}": v for k, v in tensors.items()}


ORIGINS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "a.safetensors": lambda t, p: save_file(t, p),
    "b.pt": lambda t, p: torch.save(t, p),
    "c.pth": lambda t, p: torch.save({"model": t, "epoch": 3, "args": {"lr": 0.1}}, p),
    "d.pth.tar": lambda t, p: torch.save({"epoch": 7, "arch": "r", "state_dict": prefixed(t), "best": 0.5}, p),
    "e.pth.tar": lambda t, p: torch.save({"state_dict": {"model": prefixed(prefixed(t))}}, p),
    "f.ckpt": lambda t, p: torch.save({"net": prefixed(t), "acc": 94.1}, p),
    "g.pt": lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False),
    "h.bin": lambda t, p: torch.save({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()}, p),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_every_origin_gives_the_original_logits(name: str, tiny: Make, samples: Batch, tmp_path: Path) -> None:
    model = tiny("resnet")
    ORIGINS[name](weights(model), tmp_path / name)
    loaded = interp.load(tmp_path / name, arch=model.card.arch, arch_args=model.card.arch_args, normalise="cifar10")
    assert torch.equal(loaded(samples.images[:3]), model(samples.images[:3]))
    assert loaded.card.sha256 == sha256_of(tmp_path / name) and loaded.card.num_classes == 10
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("family", ["xcit", "mobilevit", "resnet"])
def test_a_file_beside_its_card_loads_as_the_card_says(family: str, tiny: Make, samples: Batch, tmp_path: Path) -> None:
    model = tiny(family)
    save_file(weights(model), tmp_path / "m.safetensors")
    (tmp_path / "m.toml").write_text(model.card.to_toml(), encoding="utf-8")
    loaded = interp.load(tmp_path / "m.safetensors")
    assert loaded.card == model.card and loaded.family == family and loaded.digest == model.digest
    assert torch.equal(loaded(samples.images[:2]), model(samples.images[:2]))


def test_the_architecture_is_found_by_shapes_not_by_the_file_name(checkpoints: Path, tiny: Make, tmp_path: Path) -> None:
    torch.save(weights(tiny("xcit")), tmp_path / "resnet50_imagenet.pt")
    loaded = interp.load(
        tmp_path / "resnet50_imagenet.pt", arch="xcit_p4", arch_args={"embed_dim": 32, "depth": 2}, normalise="half"
    )
    assert loaded.card.arch == "xcit_p4" and loaded.card.arch_args == {"embed_dim": 32, "depth": 2}
    assert not loaded.robust and loaded.card.preprocess.std == (0.5, 0.5, 0.5) and loaded.card.preprocess.size == 32


def test_strides_that_shapes_cannot_show_are_asked_for(tiny: Make, tmp_path: Path) -> None:
    torch.save(weights(tiny("mobilevit")), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"shapes cannot tell these apart.*--arch mobilevit_xxs.*--arch mobilevit_32.*strides"):
        interp.load(tmp_path / "x.pt", normalise="none")


def nothing(path: Path) -> Path:
    return path.with_name("missing.pt")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def html(path: Path) -> Path:
    path.write_text("\n <!DOCTYPE html><html><body>Quota exceeded</body></html>")
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def not_finite(path: Path) -> Path:
    torch.save({"fc.weight": torch.tensor([[1.0, torch.nan]]), "fc.bias": torch.ones(1)}, path)
    return path


def infinite(path: Path) -> Path:
    torch.save({"fc.weight": torch.tensor([[1.0, torch.inf]]).half()}, path)
    return path


def one_tensor(path: Path) -> Path:
    torch.save(torch.ones(3), path)
    return path


def numbers(path: Path) -> Path:
    torch.save({"epoch": 3, "lr": 0.1}, path)
    return path


def empty_dict(path: Path) -> Path:
    torch.save({}, path)
    return path


def no_classifier(path: Path) -> Path:
    torch.save({"decoder.weight": torch.ones(2, 2)}, path)
    return path


def one_missing(path: Path) -> Path:
    weights = build("resnet_cifar", num_classes=10).state_dict()
    torch.save({k: v for k, v in weights.items() if k != "bn1.bias"}, path)
    return path


def one_more(path: Path) -> Path:
    torch.save({**build("resnet_cifar", num_classes=10).state_dict(), "extra": torch.ones(1)}, path)
    return path


def no_architecture(path: Path) -> Path:
    torch.save({"conv9.weight": torch.ones(3, 3, 3, 3), "fc.weight": torch.ones(10, 3), "fc.bias": torch.ones(10)}, path)
    return path


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (nothing, r"there is no file .*missing\.pt; expected a checkpoint"),
        (folder, r"is a folder; expected one checkpoint file"),
        (html, r"is an HTML page, not a checkpoint.*download it"),
        (empty, r"is empty.*fetch the file again"),
        (not_finite, r"not finite.*fc\.weight"),
        (infinite, r"not finite.*fc\.weight"),
        (one_tensor, r"found no state dict, but Tensor; expected names with tensors.*model\.state_dict\(\)"),
        (numbers, r"found no state dict, but epoch: int, lr: float; expected names with tensors"),
        (empty_dict, r"found no state dict, but nothing; expected"),
        (no_classifier, r"no known architecture has the names.*decoder\.weight.*no classifier.*--arch NAME"),
        (no_architecture, r"no known architecture has the names.*conv9.*--arch NAME"),
        (one_missing, r"no known architecture fits.*Nearest: resnet_cifar.*, but missing: bn1\.bias\."),
        (one_more, r"no known architecture fits.*Nearest: resnet_cifar.*, but without a place: extra\."),
    ],
)
def test_bad_files_say_what_was_found_and_what_to_do(
    spoil: Callable[[Path], Path], says: str, checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        interp.load(spoil(tmp_path / "model.pt"), normalise="none")


def test_a_changed_file_is_refused_by_its_card(checkpoints: Path) -> None:
    assert interp.load("tiny_linf").robust
    path = checkpoints / "tiny_linf.safetensors"
    tensors = read(path).root
    key = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[key] = tensors[key] * 1.01
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"sha256 {sha256_of(path)[:12]}…, its card says .*restore the file or its card"):
        interp.load("tiny_linf")


def test_a_shipped_card_without_its_weights_says_so(checkpoints: Path) -> None:
    (checkpoints / "tiny_linf.safetensors").unlink()
    with pytest.raises(InputError, match=r"there is no file .*tiny_linf\.safetensors"):
        interp.load("tiny_linf")


def test_the_model_normalises_what_the_bare_network_is_fed(tiny: Make, samples: Batch) -> None:
    model = tiny("xcit")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.card.preprocess.mean, model.card.preprocess.std))
    x = samples.images[:4]
    assert torch.equal(model(x), model.net((x - mean) / std))
    assert not torch.allclose(model(x), model.net(x), atol=1e-5)
    reverse = Model(model.net, dataclasses.replace(model.card, preprocess=Preprocess(32, 32, channels="bgr")))
    assert torch.equal(reverse(x), model.net(x[:, [2, 1, 0]]))


@pytest.mark.parametrize("name", NORMALISERS)
def test_the_normalisation_asked_for_is_the_one_used(name: str, checkpoints: Path) -> None:
    path = checkpoints / "tiny_linf.safetensors"
    model = interp.load(path, normalise=name)
    assert (model.card.preprocess.mean, model.card.preprocess.std) == NORMALISERS[name]
    assert model.mean.flatten().tolist() == pytest.approx(NORMALISERS[name][0])


def test_an_unknown_normalisation_names_the_known_ones(checkpoints: Path) -> None:
    with pytest.raises(InputError, match=r"'cifar'; expected one of none, imagenet, half, cifar10"):
        interp.load("tiny_linf", normalise="cifar")


@pytest.mark.filterwarnings("default::UserWarning")
def test_labelled_images_settle_the_normalisation(model_test: Path, samples: Batch) -> None:
    model = interp.load(model_test, images=samples)
    assert model.card.arch == "resnet_cifar" and model.card.num_classes == 10 and not model.robust
    assert model.card.preprocess.mean == (0, 0, 0) and model.card.preprocess.std == (1, 1, 1)
    assert model.card.origin.endswith(": none") and "20 labelled images" in model.card.origin
    assert model.card.labels == samples.classes
    accuracy = (model(samples.images).argmax(1) == samples.labels).float().mean()
    assert accuracy >= 0.9


def test_images_name_the_classes_of_a_file_that_does_not(model_test: Path, samples: Batch) -> None:
    assert interp.load(model_test, normalise="none").card.labels == ()
    assert interp.load(model_test, normalise="none", images=samples).card.labels == samples.classes


def test_without_images_or_normalisation_nothing_is_guessed(model_test: Path, samples: Batch) -> None:
    for images in (None, Batch(samples.images[:1], torch.tensor([-1]))):
        with pytest.raises(
            InputError, match=r"nothing says how inputs were normalised.*--normalise none\|imagenet.*labelled images"
        ):
            interp.load(model_test, images=images)


def test_settling_refuses_images_of_other_classes_or_sizes(model_test: Path, samples: Batch) -> None:
    five = Batch(samples.images[:5], torch.arange(5), classes=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match=r"has 10 classes, the images come with 5 \(a, b, c, d"):
        interp.load(model_test, images=five)
    large = Batch(torch.rand(2, 3, 40, 40), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"32, 32.*found \(2, 3, 40, 40\)"):
        interp.load(model_test, images=large)


def test_unknown_ids_name_the_nearest(checkpoints: Path) -> None:
    assert list(shipped()) == ["tiny_linf", "tiny_standard"]
    with pytest.raises(InputError, match=r"'tiny_lnif' is neither .* nearest ids are tiny_linf"):
        interp.load("tiny_lnif")
    with pytest.raises(InputError, match=r"timm has no model 'resnet51'.*resnet50"):
        interp.load("timm:resnet51")
    with pytest.raises(InputError, match=r"no architecture is called 'xcit_p5'.*xcit_p4"):
        build("xcit_p5", num_classes=10)


def test_arguments_an_architecture_lacks_are_named(checkpoints: Path) -> None:
    with pytest.raises(InputError, match=r"'resnet50_32' does not take these arguments: \{'depth': 3\}"):
        build("resnet50_32", num_classes=10, arch_args={"depth": 3})
    with pytest.raises(InputError, match=r"takes 6 strides .* found 2"):
        build("mobilevit_32", num_classes=10, arch_args={"strides": [1, 2]})


def test_wrong_class_counts_and_names_are_refused(tiny: Make, samples: Batch) -> None:
    names = samples.classes
    card = tiny("xcit", labels=names).card
    check_labels(card, samples)
    check_labels(card, Batch(samples.images, samples.labels))
    with pytest.raises(InputError, match=r"10 classes, the images come with 2 \(cat, dog\); .*\(airplane, .*…\)"):
        check_labels(card, Batch(samples.images[:2], torch.tensor([0, 1]), classes=("cat", "dog")))
    with pytest.raises(InputError, match=r"names its classes airplane.* the images truck.*rename"):
        check_labels(card, Batch(samples.images, samples.labels, classes=names[::-1]))
    with pytest.raises(InputError, match=r"10 classes, the images have a label 10"):
        check_labels(card, Batch(samples.images[:1], torch.tensor([10])))


def test_images_of_some_of_a_models_classes_take_their_places(samples: Batch) -> None:
    x, names = samples.images[:4], samples.classes
    some = by_name(Batch(x, torch.tensor([0, 0, 1, -1]), classes=("frog", "cat")), names)
    assert some.labels.tolist() == [6, 6, 3, -1] and some.classes == names and torch.equal(some.images, x)
    sorted_ = by_name(Batch(x, torch.tensor([0, 0, 1, 1]), ids=("a", "b", "c", "d"), classes=("frog", "cat")), names)
    assert sorted_.labels.tolist() == [3, 3, 6, 6] and sorted_.ids == ("c", "d", "a", "b")  # by class, as folders are
    assert torch.equal(sorted_.images, x[[2, 3, 0, 1]])
    for classes in (("frog", "cow"), names, ()):
        other = Batch(x, torch.tensor([1, 0, 0, 1]), classes=classes)
        assert by_name(other, names) is other
    assert by_name(samples, ()) is samples


def test_shipped_models_judge_where_two_models_have_no_judge_of_another_architecture(checkpoints: Path, tiny: Make) -> None:
    """Here two XCiTs are shipped: they judge others of CIFAR-10's classes, neither XCiTs nor models of three architectures."""
    xcit, resnet, mobilevit = (tiny(family, labels=CIFAR10) for family in ("xcit", "resnet", "mobilevit"))
    asked = {"resnet": [resnet], "two": [resnet, mobilevit], "xcit": [xcit], "three": [xcit, resnet, mobilevit]}
    found = {name: [judge.card.id for judge in interp.independent_judges(models)] for name, models in asked.items()}
    assert found == {"resnet": ["tiny_standard", "tiny_linf"], "two": ["tiny_standard", "tiny_linf"], "xcit": [], "three": []}
    assert interp.independent_judges([tiny("resnet", labels=tuple("abcdefghij"))]) == []


def test_models_of_one_id_are_named_by_their_folders(tiny: Make, tmp_path: Path) -> None:
    paths = [tmp_path / run / "best.pt" for run in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    named = named_apart([tiny("xcit", id="best"), tiny("xcit", id="best", seed=1)], [str(p) for p in paths])
    assert [model.card.id for model in named] == ["one_best", "two_best"]
    with pytest.raises(InputError, match=r"^best is given twice"):
        named_apart([tiny("xcit", id="best")] * 2, [str(paths[0])] * 2)


def test_an_id_is_named_once_however_many_entries_have_it(checkpoints: Path) -> None:
    with pytest.raises(InputError, match="nearest ids are") as caught:
        interp.load("Engstrom2019Robustnes")
    named = str(caught.value).partition("nearest ids are ")[2].partition(".")[0].split(", ")
    assert "Engstrom2019Robustness" in named and len(named) == len(set(named))


def test_a_card_of_another_class_count_is_refused(checkpoints: Path) -> None:
    path = checkpoints / "tiny_linf.toml"
    card = dataclasses.replace(Card.read(path), num_classes=5, labels=())
    path.write_text(card.to_toml(), encoding="utf-8")
    with pytest.raises(InputError, match=r"does not fit xcit_p4.*head\.weight \(10, 32\) instead of \(5, 32\)"):
        interp.load("tiny_linf")


def test_mismatch_counts_what_is_missing_extra_and_reshaped() -> None:
    expected = {"a": torch.Size([2]), "b": torch.Size([3])}
    assert mismatch({"a": torch.ones(2), "b": torch.ones(3)}, expected) == ""
    found = mismatch({"a": torch.ones(4), "c": torch.ones(1)}, expected)
    assert found == "missing: b; without a place: c; of another shape: a (4,) instead of (2,)"
    assert mismatch({}, {k: torch.Size([1]) for k in "abcde"}) == "missing: a, b, c and 2 more"


def test_the_number_of_classes_is_the_classifiers_rows() -> None:
    assert num_classes({"fc.weight": torch.ones(7, 3)}) == 7
    assert num_classes({"head.fc.weight": torch.ones(4, 3), "x": torch.ones(9, 9)}) == 4
    assert num_classes({"fc.weight": torch.ones(7, 3, 1, 1)}) is None


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_numbers_of_another_kind_are_no_weights(kind: torch.dtype, tmp_path: Path) -> None:
    weights = {
        k: v.to(kind) if v.is_floating_point() else v for k, v in build("resnet_cifar", num_classes=10).state_dict().items()
    }
    torch.save(weights, tmp_path / "m.pt")
    with pytest.raises(InputError, match=rf"conv1\.weight holds {kind} where weights are real numbers"):
        interp.load(tmp_path / "m.pt", normalise="none")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_single(kind: torch.dtype, tmp_path: Path) -> None:
    net = build("resnet_cifar", num_classes=10)
    torch.save(net.to(kind).state_dict(), tmp_path / "m.pt")
    loaded = interp.load(tmp_path / "m.pt", normalise="none")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.net.conv1.weight, net.conv1.weight.float())
