"""The catalogue: every published row once, expanded to a full card, found by name, file digest or pattern."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from interp.data.labels import CIFAR10
from interp.models import catalogue as module
from interp.models.build import BUILDERS, build, resolve
from interp.models.catalogue import Entry, as_json, by_sha256, catalogue, counts, find, listing, match, unavailable
from interp.types import Card, InputError

# Ids of RobustBench's L∞ and L2 tables (model_info/*.json of github.com/RobustBench/robustbench), copied from there and not
# from the catalogue.
TABLES: dict[str, str] = {
    "cifar10/L2": """
        Amini2024MeanSparse_S-WRN-70-16 Augustin2020Adversarial Augustin2020Adversarial_34_10
        Augustin2020Adversarial_34_10_extra Ding2020MMA Engstrom2019Robustness Gowal2020Uncovering Gowal2020Uncovering_extra
        Rade2021Helper_R18_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_ddpm
        Rebuffi2021Fixing_70_16_cutmix_extra Rebuffi2021Fixing_R18_cutmix_ddpm Rice2020Overfitting Rony2019Decoupling
        Sehwag2021Proxy Sehwag2021Proxy_R18 Standard Wang2023Better_WRN-28-10 Wang2023Better_WRN-70-16 Wu2020Adversarial
    """,
    "cifar10/Linf": """
        Addepalli2021Towards_RN18 Addepalli2021Towards_WRN34 Addepalli2022Efficient_RN18 Addepalli2022Efficient_WRN_34_10
        Alayrac2019Labels Alfarra2020ClusTR Amini2024MeanSparse_Ra_WRN_70_16 Amini2024MeanSparse_S-WRN-94-16
        Andriushchenko2020Understanding Atzmon2019Controlling Bai2023Improving_edm Bai2024MixedNUTS
        Bartoldson2024Adversarial_WRN-82-8 Bartoldson2024Adversarial_WRN-94-16 Carmon2019Unlabeled Chan2020Jacobian
        Chen2020Adversarial Chen2020Efficient Chen2021LTD_WRN34_10 Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_10
        Chen2024Data_WRN_34_20 Cui2020Learnable_34_10 Cui2020Learnable_34_20 Cui2023Decoupled_WRN-28-10
        Cui2023Decoupled_WRN-34-10 Dai2021Parameterizing Debenedetti2022Light_XCiT-L12 Debenedetti2022Light_XCiT-M12
        Debenedetti2022Light_XCiT-S12 Ding2020MMA Engstrom2019Robustness Gowal2020Uncovering_28_10_extra
        Gowal2020Uncovering_34_20 Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra
        Gowal2021Improving_28_10_ddpm_100m Gowal2021Improving_70_16_ddpm_100m Gowal2021Improving_R18_ddpm_100m
        Hendrycks2019Using Huang2020Self Huang2021Exploring Huang2021Exploring_ema Huang2022Revisiting_WRN-A4
        Jang2019Adversarial Jia2022LAS-AT_34_10 Jia2022LAS-AT_70_16 JinRinard2020Manifold Kang2021Stable KimWang2020Sensible
        Kumari2019Harnessing Kundu2020Tunable Madry2018Towards Mao2019Metric Moosavi-Dezfooli2019Robustness
        Mustafa2019Adversarial Pang2020Bag Pang2020Boosting Pang2020Rethinking Pang2022Robustness_WRN28_10
        Pang2022Robustness_WRN70_16 Peng2023Robust Qin2019Adversarial Rade2021Helper_R18_ddpm Rade2021Helper_R18_extra
        Rade2021Helper_ddpm Rade2021Helper_extra Rebuffi2021Fixing_106_16_cutmix_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm
        Rebuffi2021Fixing_70_16_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_extra Rebuffi2021Fixing_R18_ddpm
        Rice2020Overfitting Sehwag2020Hydra Sehwag2021Proxy Sehwag2021Proxy_R18 Sehwag2021Proxy_ResNest152
        Shafahi2019Adversarial Sitawarin2020Improving Sridhar2021Robust Sridhar2021Robust_34_15 Standard Wang2020Improving
        Wang2023Better_WRN-28-10 Wang2023Better_WRN-70-16 WangZhang2019Bilateral Wong2020Fast Wu2020Adversarial
        Wu2020Adversarial_extra Wu2020Do Xiao2020Enhancing Xu2023Exploring_WRN-28-10 Zhang2019Theoretically Zhang2019You
        Zhang2020Attacks Zhang2020Geometry Zhang2020Towards ZhangWang2019Defense ZhangXu2020Adversarial
    """,
    "cifar100/Linf": """
        Addepalli2021Towards_PARN18 Addepalli2021Towards_WRN34 Addepalli2022Efficient_RN18 Addepalli2022Efficient_WRN_34_10
        Amini2024MeanSparse_S-WRN-70-16 Bai2023Improving_edm Bai2023Improving_trades Bai2024MixedNUTS Chen2020Efficient
        Chen2021LTD_WRN34_10 Chen2024Data_WRN_34_10 Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6
        Cui2020Learnable_34_10_LBGAT9_eps_8_255 Cui2020Learnable_34_20_LBGAT6 Cui2023Decoupled_WRN-28-10
        Cui2023Decoupled_WRN-34-10 Cui2023Decoupled_WRN-34-10_autoaug Debenedetti2022Light_XCiT-L12
        Debenedetti2022Light_XCiT-M12 Debenedetti2022Light_XCiT-S12 Gowal2020Uncovering Gowal2020Uncovering_extra
        Hendrycks2019Using Jia2022LAS-AT_34_10 Jia2022LAS-AT_34_20 Pang2022Robustness_WRN28_10 Pang2022Robustness_WRN70_16
        Rade2021Helper_R18_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm Rebuffi2021Fixing_70_16_cutmix_ddpm
        Rebuffi2021Fixing_R18_ddpm Rice2020Overfitting Sehwag2021Proxy Sitawarin2020Improving Wang2023Better_WRN-28-10
        Wang2023Better_WRN-70-16 Wu2020Adversarial
    """,
    "imagenet/Linf": """
        Amini2024MeanSparse_ConvNeXt-L Amini2024MeanSparse_Swin-L Bai2024MixedNUTS Chen2024Data_WRN_50_2
        Debenedetti2022Light_XCiT-L12 Debenedetti2022Light_XCiT-M12 Debenedetti2022Light_XCiT-S12 Engstrom2019Robustness
        Liu2023Comprehensive_ConvNeXt-B Liu2023Comprehensive_ConvNeXt-L Liu2023Comprehensive_Swin-B
        Liu2023Comprehensive_Swin-L Mo2022When_Swin-B Mo2022When_ViT-B Peng2023Robust
        RodriguezMunoz2024Characterizing_Swin-B RodriguezMunoz2024Characterizing_Swin-L Salman2020Do_50_2 Salman2020Do_R18
        Salman2020Do_R50 Singh2023Revisiting_ConvNeXt-B-ConvStem Singh2023Revisiting_ConvNeXt-L-ConvStem
        Singh2023Revisiting_ConvNeXt-S-ConvStem Singh2023Revisiting_ConvNeXt-T-ConvStem Singh2023Revisiting_ViT-B-ConvStem
        Singh2023Revisiting_ViT-S-ConvStem Standard_R50 Wong2020Fast Xu2024MIMIR_Swin-B Xu2024MIMIR_Swin-L
    """,
}
# Google Drive ids in the README of dedeswim/vits-robustness-torch, table by table.
VITS = """
    1wbx18o4l_ECyEYo9eyHnIYPlSNRMpO-D 184utgGfgh6m_GDBe_mETWf0HmxksGCHH 154l0cWMtBMK64yG7gn3fzoTQSATHR8H5
    1EAMVH8e67cXIFPlmK-JFFK0hzuONOWyq 1akb4N1B5mmesZsYGIhhDwtO-3iiKu5tb 1lFcXruv6lUz9XqxvXTzyA_7YLprPZq2q
    1Nw86jzlXLEGbFQZtd39i0Mampwh2ZAFv 1UPDBDkirsxUGBEDrznJrTZ0JR173nMlv 1JyRn30kY0NPUGEigaOrGLDIkIC_V932W
    16XlIPBlPA2xlYb5D4BOoNEgYl5UwyW7b 1hu7Z4LhR4OOL3gmbHuT9ljRTSKIxGbPs 1yan2zUNA6s6zDc0MOkfgCr3ctjWcQEI0
    1NWI77UiSD5nOx6dQgvIyPRYQof-8ke-y 1hAHZutBd7ttO9tz30k1swc6nhyqpJqdF 13vFwvVWEESfWWpoicPhD08HtzYszeyUr
    1YXnGsY3yvvaMucMwyfhDHIUchOSungj2 1Sg4BQ5pBdlR_M41VDxOlYxCl1_It8elL 1RweWjpjMyyhF8P1JdjuDc09F6wp4TsF9
    1XHCbdj5vXUybofNmNd5a2LGQeVxITCpE 1y41kNkiSwNPNs61QZhm9Cy0arBkeKjA0 1l_wdzgXI5lE6RVOtZvIzaPOMfoL6a1GJ
    1sNwwZ4gIP7yIwv87RSaWu70duAUotruW
"""


def rows() -> list[str]:
    return [f"robustbench:{table}/{name}" for table, names in TABLES.items() for name in names.split()]


def test_every_row_of_robustbench_is_there_or_said_to_be_unavailable_but_not_both() -> None:
    here = {name for name in catalogue() if name.startswith("robustbench:")}
    assert len(rows()) == len(set(rows())) == 188
    assert here | unavailable().keys() == set(rows())
    assert not here & unavailable().keys()
    assert all(len(why) > 20 for why in unavailable().values())


def test_every_file_of_the_light_recipe_is_there_once() -> None:
    hosts = [e.host for e in catalogue().values() if e.origin == "vits-robustness"]
    assert sorted(hosts) == sorted(f"gdrive:{key}" for key in VITS.split())
    assert len(hosts) == len(set(hosts)) == 22


def test_no_two_rows_of_one_zoo_name_one_file() -> None:
    """RobustBench's L2 and L∞ entries of one name are different files; only its standard model stands in both tables."""
    hosts: dict[str, list[str]] = {}
    for e in catalogue().values():
        hosts.setdefault(f"{e.origin} {e.host} {e.filename}", []).append(e.id)
    assert [ids for ids in hosts.values() if len(ids) > 1] == [
        ["robustbench:cifar10/Linf/Standard", "robustbench:cifar10/L2/Standard"]
    ]


def test_every_card_is_whole_and_survives_its_toml() -> None:
    for e in catalogue().values():
        assert Card.from_toml(e.card.to_toml()) == e.card, e.id
        assert e.card.num_classes == {"imagenet": 1000, "cifar10": 10, "cifar100": 100}.get(e.dataset, 102)
        assert e.card.numbers and all(0 <= n.low <= n.value <= n.high <= 1 and n.source for n in e.card.numbers), e.id
        assert all(n.value > 0.3 for n in e.card.numbers if n.name == "clean"), e.id
        assert all(n.value < e.card.numbers[0].value for n in e.card.numbers[1:]), e.id
        assert (e.card.threat is None) == (e.card.training == "standard"), e.id
        assert e.card.threat is None or 0 < e.card.threat.eps <= (0.04 if e.card.threat.norm == "linf" else 5), e.id
        assert e.host.startswith(("gdrive:", "hf-hub:", "https://")) and "{" not in e.host + e.filename and "/" not in e.filename
        assert e.url.startswith("https://") and e.card.preprocess.resize >= e.card.preprocess.size, e.id
        assert not set(e.card.sha256) - set("0123456789abcdef") and len(e.card.sha256) in (0, 8, 64), e.id
        json.dumps(as_json(e))


def test_numbers_carry_n_and_the_wilson_interval() -> None:
    """64.02 % of 5,000 (RobustBench) and 63.86 % of 50,000 (the authors) are one model's: the intervals overlap."""
    few, many = find("robustbench:Salman2020Do_R50").card, find("salman2020:resnet50_linf_eps4.0").card
    clean = few.number("clean")
    assert clean is not None and (clean.value, clean.n) == (0.6402, 5000)
    assert clean.low == pytest.approx(0.6268, abs=1e-4) and clean.high == pytest.approx(0.6534, abs=1e-4)
    authors = many.number("clean")
    assert authors is not None and authors.n == 50_000 and clean.low < authors.value < clean.high
    external = find("robustbench:cifar10/Linf/Gowal2020Uncovering_70_16").card.number("external")
    assert external is not None and external.value == 0.5714


@pytest.mark.parametrize(
    ("name", "mean", "std", "size", "resize", "interpolation"),
    [
        ("vits-robustness:imagenet/eps4/xcit_small_12_p16_224", (0, 0, 0), (1, 1, 1), 224, 224, "bicubic"),
        ("vits-robustness:imagenet/eps8/resnet50_gelu", (0.5,) * 3, (0.5,) * 3, 224, 235, "bicubic"),
        ("vits-robustness:cifar100/xcit_large_12_p4_32", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 32, 32, "bicubic"),
        ("robustbench:imagenet/Linf/Debenedetti2022Light_XCiT-M12", (0, 0, 0), (1, 1, 1), 224, 224, "bicubic"),
        ("robustbench:cifar10/Linf/Hendrycks2019Using", (0.5,) * 3, (0.5,) * 3, 32, 32, "bicubic"),
        (
            "robustbench:cifar10/Linf/Engstrom2019Robustness",
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
            32,
            32,
            "bicubic",
        ),
        (
            "robustbench:cifar100/Linf/Wang2023Better_WRN-28-10",
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            32,
            32,
            "bicubic",
        ),
        ("robustbench:Singh2023Revisiting_ConvNeXt-T-ConvStem", (0, 0, 0), (1, 1, 1), 224, 256, "bicubic"),
        ("robustbench:Singh2023Revisiting_ViT-S-ConvStem", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 256, "bicubic"),
        ("robustbench:Chen2024Data_WRN_50_2", (0, 0, 0), (1, 1, 1), 224, 256, "bilinear"),
        ("salman2020:wide_resnet50_4_l2_eps3", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 256, "bilinear"),
    ],
)
def test_preprocessing_is_the_checkpoints_own(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], size: int, resize: int, interpolation: str
) -> None:
    found = find(name).card.preprocess
    assert (found.mean, found.std, found.size, found.resize, found.interpolation) == (mean, std, size, resize, interpolation)
    assert found.channels == "rgb"


def test_apples_first_mobilevits_take_blue_green_red() -> None:
    for e in match("apple:*"):
        assert e.card.preprocess.channels == ("rgb" if "mobilevitv2" in e.id else "bgr"), e.id
        assert e.card.preprocess.resize == 288, e.id
    assert find("timm:mobilevit_xs.cvnets_in1k").card.preprocess.channels == "rgb"


def test_preprocessing_of_timms_rows_is_timms() -> None:
    import timm

    for e in match("timm:*"):
        name = e.id.removeprefix("timm:")
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        found = e.card.preprocess
        size = cfg.input_size[-1]
        assert (found.size, found.resize, found.interpolation) == (size, int(size / cfg.crop_pct), cfg.interpolation), e.id
        assert (found.mean, found.std, e.card.num_classes) == (tuple(cfg.mean), tuple(cfg.std), cfg.num_classes), e.id
        assert (e.host, e.card.licence) == (f"hf-hub:{cfg.hf_hub_id}", cfg.license), e.id


def test_torchvisions_rows_are_torchvisions() -> None:
    from torchvision import models

    for e in match("torchvision:*"):
        arch, weights = e.name.split(".")
        theirs = models.get_model_weights(arch)[weights]
        preset = theirs.transforms()
        found = e.card.preprocess
        assert e.url == theirs.url, e.id
        assert 100 * e.card.numbers[0].value == pytest.approx(theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]), e.id
        assert [found.size] == preset.crop_size and [found.resize] == preset.resize_size, e.id
        assert (
            found.interpolation == preset.interpolation.value
            and list(found.mean) == preset.mean
            and list(found.std) == preset.std
        )


def shapes() -> dict[str, Entry]:
    """One entry per architecture, arguments and number of classes."""
    return {f"{e.card.arch} {e.card.arch_args} {e.card.num_classes}": e for e in catalogue().values()}


def weights_of(e: Entry) -> int:
    with torch.device("meta"):
        net = build(e.card.arch, num_classes=e.card.num_classes, arch_args=e.card.arch_args)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vits-robustness:imagenet/eps4/xcit_small_12_p16_224", 26.25),
        ("vits-robustness:cifar10/resnet50_32", 23.52),
        ("robustbench:cifar10/Linf/Wang2023Better_WRN-28-10", 36.48),
        ("robustbench:cifar10/Linf/Rebuffi2021Fixing_R18_ddpm", 12.55),
        ("robustbench:cifar10/Linf/Wong2020Fast", 11.17),
        ("robustbench:Singh2023Revisiting_ConvNeXt-T-ConvStem", 28.63),
        ("robustbench:Singh2023Revisiting_ViT-S-ConvStem", 22.78),
        ("madrylab:cifar_linf_8", 23.52),
        ("salman2020:wide_resnet50_2_l2_eps3", 68.88),
        ("timm:mobilevit_s.cvnets_in1k", 5.58),
        ("facebook:deit_small_patch16_224", 22.05),
    ],
)
def test_a_row_builds_with_the_published_number_of_parameters(name: str, millions: float) -> None:
    assert weights_of(find(name)) / 1e6 == pytest.approx(millions, abs=0.006)


def test_every_architecture_has_a_builder() -> None:
    import timm

    for e in shapes().values():
        arch, _ = resolve(e.card.arch, e.card.arch_args)
        assert arch in BUILDERS or timm.is_model(arch), e.id


@pytest.mark.slow
def test_every_row_builds() -> None:
    assert all(weights_of(e) > 1_000_000 for e in shapes().values())


def test_names_lead_to_their_entry() -> None:
    for name in catalogue():
        assert find(name).id == name
    for e in catalogue().values():
        assert all(find(alias) is e for alias in e.aliases)
    assert find("robustbench:Salman2020Do_R50") is find("Salman2020Do_R50") is find("salman2020do_r50")
    assert find("Salman2020Do_R50").id == "robustbench:imagenet/Linf/Salman2020Do_R50"
    assert find("debenedetti2022light_xcit_s12_imagenet_linf").name == "Debenedetti2022Light_XCiT-S12"
    assert find("vits-robustness:cifar10/xcit_large_12_4_32").name == "xcit_large_12_p4_32"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("robustbench:Rice2020Overfitting", "3 checkpoints; write which: robustbench:cifar10/Linf/Rice2020Overfitting, "),
        ("Salman2020Do_R5", "nearest ids are robustbench:imagenet/Linf/Salman2020Do_R50"),
        ("robustbench:cifar10/Linf/Peng2023Robust", "cannot be built or fetched: a searched or re-scaled residual network"),
        ("Xu2024MIMIR_Swin-L", "cannot be built or fetched: Swin"),
        ("", "the catalogue has no ''"),
    ],
)
def test_other_names_are_refused_with_what_would_do(name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        find(name)
    assert says in str(caught.value)


def test_a_file_is_known_by_its_digest_or_the_published_digits_of_it() -> None:
    whole = "9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db"
    for sha in (whole, whole.upper(), whole[:8], whole[:20]):
        found = by_sha256(sha)
        assert found is not None and found.id == "salman2020:resnet50_linf_eps4.0"
    assert by_sha256(whole[:-1] + "0") is None
    torchvisions = by_sha256("0676ba61" + 56 * "0")  # only eight digits are published
    assert torchvisions is not None and torchvisions.id == "torchvision:resnet50.IMAGENET1K_V1"
    assert by_sha256(64 * "0") is None
    for bad in ("", "0676ba6", 65 * "a", "not hex!"):
        with pytest.raises(InputError, match="is no sha256; expected 8 to 64"):
            by_sha256(bad)


def test_patterns_and_parts_of_names() -> None:
    assert len(match("*")) == len(catalogue()) == sum(counts().values())
    assert {e.dataset for e in match("robustbench:cifar10/*")} == {"cifar10"}
    assert len(match("robustbench:*")) + len(unavailable()) == 188
    assert {e.origin for e in match("SALMAN")} == {"robustbench", "salman2020"}
    assert [e.name for e in match("resnet_50_gelu")] == ["resnet50_gelu", "resnet50_gelu"]  # by its alias
    assert match("no such") == []


def test_cifar10_rows_name_their_classes() -> None:
    assert {e.card.labels for e in catalogue().values() if e.dataset == "cifar10"} == {CIFAR10}


def test_the_listing_keeps_names_whole_and_marks_what_is_here() -> None:
    entries = match("*")
    text = listing(entries, here={"madrylab:imagenet_linf_4"}, width=100)
    lines = text.splitlines()
    assert all(any(line[2:].startswith(e.name + " ") for line in lines) for e in entries)
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["imagenet_linf_4"]
    (row,) = [line for line in lines if line.startswith("* ")]
    assert row.split()[2:] == ["resnet50", "linf", "4/255", "62.42", "/", "–", "50,000"]
    assert max(map(len, listing(match("robustbench:imagenet/*"), width=100).splitlines())) <= 100
    assert max(map(len, listing(match("vits-robustness:*"), width=100).splitlines())) <= 100


def test_reading_it_costs_little_and_happens_once() -> None:
    catalogue.cache_clear()
    start = time.perf_counter()
    first = catalogue()
    assert time.perf_counter() - start < 0.5
    assert catalogue() is first


def test_a_row_with_an_unknown_key_or_an_id_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = module.FILE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if '"imagenet_linf_8"' in line)
    for worse, says in ((row.replace("clean =", "claen ="), "unknown keys claen"), (row.replace("linf_8", "linf_4"), "two rows")):
        file = tmp_path / "catalogue.toml"
        file.write_text(text.replace(row, worse), encoding="utf-8")
        monkeypatch.setattr(module, "FILE", file)
        catalogue.cache_clear()
        with pytest.raises(InputError, match=says):
            catalogue()
    monkeypatch.undo()
    catalogue.cache_clear()
