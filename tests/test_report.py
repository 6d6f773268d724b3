"""The whole main job on tiny models: the page is complete, self-contained, repeatable, and survives being stopped."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import interp
from interp import study
from interp.attacks.pgd import PGD
from interp.attacks.sweep import Sweep
from interp.attacks.synthesis import Synthesis
from interp.attributes.compare import Compare
from interp.data.labels import CIFAR10
from interp.gradients.accumulate import Accumulate
from interp.gradients.captum import METHODS
from interp.job import write_report
from interp.report import words
from interp.robustness.accuracy import Accuracy
from interp.types import Batch, Threat

QUICK = PGD(8 / 255, steps=2)
PARAMS = {
    "accuracy": Accuracy(dataclasses.replace(QUICK, step_size=2 / 255)),
    "sweep": Sweep((8 / 255, 1.0), QUICK),
    "synthesis": Synthesis(PGD(15.0, steps=2, targeted=True)),
    "gradients": Accumulate(attack=QUICK),
    "compare": Compare(PGD(32 / 255, steps=2, targeted=True), QUICK, groups=("perturbation",), sweep=(0.1,), swept=2),
}


def quick_plan(labelled: bool = True) -> list[study.Analysis]:
    plan = study.main_plan(pictures=2, labelled=labelled)
    return [dataclasses.replace(a, params=PARAMS.get(a.kind, a.params)) for a in plan]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_models: list[interp.Model], samples: Batch) -> Path:
    return write_report(tiny_models, samples[:4], tmp_path_factory.mktemp("page"), plan=quick_plan())


def test_page_carries_every_section_and_every_figure_beside_it(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for title in ("Accuracy", "Perturbations", "Synthesis", "gradients", "Attention", "Semantic attributes"):
        assert title in html
    for name in (
        "accuracy",
        "perturbations_0_cat",
        "perturbation_curves",
        "synthesis",
        "gradients",
        "attention",
        "measures",
        "judges_image",
        "sweeps",
        "examples",
        "spectra",
    ):
        for suffix in (".png", ".pdf"):
            assert (page.parent / f"{name}{suffix}").stat().st_size > 2000
    assert len(list((page.parent / "results").glob("*.nc"))) == 6
    assert '<section id="classified">' in (page.parent / "measures.html").read_text(encoding="utf-8")


def test_page_needs_no_network_and_no_other_file_to_be_read(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(src|href)="https?://', body)
    assert all(source.startswith("data:") for source in re.findall(r'<img src="([^"]*)"', body))
    for link in re.findall(r'href="([^"#][^"]*)"', body):
        assert (page.parent / link).is_file()


def test_second_run_computes_nothing_and_draws_the_same_bytes(
    page: Path, tiny_models: list[interp.Model], samples: Batch
) -> None:
    results = {p: p.stat().st_mtime_ns for p in (page.parent / "results").glob("*.nc")}
    figures = {p: p.read_bytes() for p in [*page.parent.glob("*.png"), *page.parent.glob("*.pdf"), page]}
    write_report(tiny_models, samples[:4], page.parent, plan=quick_plan())
    assert results == {p: p.stat().st_mtime_ns for p in (page.parent / "results").glob("*.nc")}
    changed = [p.name for p, content in figures.items() if p.read_bytes() != content]
    assert changed == []


def test_a_stopped_study_goes_on_and_ends_like_an_uninterrupted_one(
    page: Path, tmp_path: Path, tiny_models: list[interp.Model], samples: Batch
) -> None:
    def stopped(*_: object) -> interp.Result:
        raise KeyboardInterrupt

    plan = quick_plan()
    halfway = [dataclasses.replace(a, run=stopped) if a.kind == "gradients" else a for a in plan]
    with pytest.raises(KeyboardInterrupt):
        study.run(tiny_models, samples[:4], halfway, tmp_path)
    kept = {p.name for p in tmp_path.iterdir()}
    assert {name.split("-")[0] for name in kept} == {"accuracy", "sweep", "synthesis"}
    study.run(tiny_models, samples[:4], plan, tmp_path)
    for path in tmp_path.iterdir():
        other = interp.open(page.parent / "results" / path.name)
        assert interp.open(path).data.drop_attrs().identical(other.data.drop_attrs())


def test_every_saved_result_draws_its_default_figure(page: Path) -> None:
    for path in (page.parent / "results").glob("*.nc"):
        assert len(interp.open(path).plot().axes) >= 1


def test_an_unlabelled_image_gets_what_needs_no_labels(tmp_path: Path, tiny_models: list[interp.Model], samples: Batch) -> None:
    import torch

    bare = Batch(samples.images[:1], torch.tensor([-1]))
    html = write_report(tiny_models, bare, tmp_path, plan=quick_plan(labelled=False)).read_text(encoding="utf-8")
    assert "Attention" in html
    assert "Semantic attributes" not in html


def test_the_words_say_what_judges_see_at_the_largest_eps(tiny: Callable[..., interp.Model], samples: Batch) -> None:
    trained = [{"training": "standard"}, {"threat": Threat("linf", 8 / 255)}]
    models = [
        tiny(family, id=f"{family}_{k}", labels=CIFAR10, **how) for family in ("xcit", "resnet") for k, how in enumerate(trained)
    ]
    found = interp.sweep(models, samples[:2], Sweep((8 / 255, 1.0), QUICK))
    others = found.data["others"].copy()
    others[:, 1, -1] = np.array([0.1, 0.6, 0.2, 0.7])[:, None]
    said = words.sweep(dataclasses.replace(found, data=found.data.assign(others=others))).seen
    assert "confidence in the target at ε = 1 (unbounded): XCiT 10% → 60%, ResNet-50 20% → 70%." in said


def test_words_on_synthesis_count_chance_by_all_classes(tiny_models: list[interp.Model], samples: Batch) -> None:
    params = Synthesis(PGD(15.0, steps=2, targeted=True), start="images", targets=(3, 8))
    text = words.synthesis(interp.synthesise(tiny_models, samples, params))
    assert text.title == "Synthesis from images of other classes" and "chance is 10%" in text.seen
    assert text.how.startswith("From an image of another class")

    assert "targeted L∞ PGD, 2 steps of 1.5·ε/steps, ε = 15 (unbounded but for the box)." in text.how
    bound = PGD(4.0, "l2", 2, 0.5, targeted=True, loss="logit", rule="momentum")
    text = words.synthesis(interp.synthesise(tiny_models, samples, Synthesis(bound, targets=(3,))))
    assert "targeted L2 PGD, 2 steps of 0.5, momentum rule, logit loss, ε = 4." in text.how


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (QUICK, "L∞ PGD, 2 steps of 1.5·ε/steps, per image"),
        (dataclasses.replace(QUICK, step_size=2 / 255), "L∞ PGD, 2 steps of 2/255, per image"),
        (dataclasses.replace(QUICK, rule="apgd", jitter=1), "L∞ APGD, 2 steps, jitter 1, per image"),
    ],
)
def test_words_on_a_sweep_say_the_steps_that_were_taken(
    attack: PGD, said: str, tiny_models: list[interp.Model], samples: Batch
) -> None:
    found = interp.sweep(tiny_models[:1], samples[:1], Sweep((8 / 255,), attack))
    text = words.sweep(found)
    assert text.how.startswith(said) and "every image is within reach" not in text.how
    fast = dataclasses.replace(
        found, params=found.params | {"precision": "fast"}, data=found.data.assign_attrs(arithmetic="bfloat16")
    )
    assert "fast search, per image" in words.sweep(fast).how and "Arithmetic of the search: bfloat16." in words.sweep(fast).how


def test_only_contributions_are_called_contributions(tiny_models: list[interp.Model], samples: Batch) -> None:
    assert set(words.MEANINGS) == {name for name, method in METHODS.items() if not method.start}
    for name, said in (("Saliency", "The absolute gradient"), ("IntegratedGradients", "What each pixel contributes")):
        found = interp.accumulate(tiny_models[:1], samples[:1], Accumulate(n=2, method=f"captum:{name}"))
        assert words.gradients(found).how.startswith(said)
    path = interp.accumulate(tiny_models[:1], samples[:1], Accumulate("path", n=2))
    assert words.gradients(path).how.startswith("What each pixel contributes to the label's logit, along 2 points (path)")


def test_no_models_is_an_error_in_words(samples: Batch, tmp_path: Path) -> None:
    with pytest.raises(interp.InputError, match="at least one"):
        write_report([], samples, tmp_path)
