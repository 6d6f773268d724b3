"""Folders as timm and transformers save them for the hub: the files beside the weights answer what the weights cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import save_for_hf
from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
)

import interp
from interp.models.hub import beside, from_hub
from interp.models.inspect import inspect
from interp.types import InputError
from tests.test_origins import network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_a_timm_folder_loads_without_a_word(tmp_path: Path) -> None:
    net = network("resnet18", {})
    save_for_hf(net, tmp_path, safe_serialization=True)
    found = inspect(tmp_path / "model.safetensors")
    assert found.settled and found.normaliser is not None and "config.json" in found.normaliser.source
    model = interp.load(tmp_path / "model.safetensors")
    cfg = net.pretrained_cfg
    assert model.card.preprocess.mean == tuple(cfg["mean"]) and model.card.preprocess.size == cfg["input_size"][-1]
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    assert torch.allclose(model(x), net((x - mean) / std), atol=1e-5)


def test_a_transformers_folder_says_size_colours_and_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MobileViTConfig(
        hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0, num_labels=10
    )
    original = MobileViTForImageClassification(config).eval()
    original.save_pretrained(tmp_path)
    processor = MobileViTImageProcessor()
    processor.save_pretrained(tmp_path)
    assert beside(tmp_path / "model.safetensors")["channels"] == "bgr"
    assert beside(tmp_path / "other_name.safetensors") == {}
    found = inspect(tmp_path / "model.safetensors")
    assert found.size is not None and found.size.value == 256 and found.channels is not None and found.channels.value == "bgr"
    model = interp.load(tmp_path / "model.safetensors", arch="mobilevit_xxs")
    x = torch.rand(1, 3, 256, 256)
    pixels = processor((x[0] * 255).round().to(torch.uint8), do_resize=False, return_tensors="pt")["pixel_values"]
    rounded = (x * 255).round() / 255
    with torch.no_grad():
        assert torch.allclose(model(rounded), original(pixels).logits, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-12, 1e-3])
def test_the_eps_of_transformers_layer_norms_is_kept(eps: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=10, layer_norm_eps=eps)
    original = ViTForImageClassification(config).eval()
    original.save_pretrained(tmp_path)
    model = interp.load(tmp_path, normalise="none")  # the folder will do
    assert model.card.arch_args["layer_norm_eps"] == eps and model.card.id == tmp_path.name
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(model(x), original(x).logits, atol=1e-5)


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    save_for_hf(network("resnet18", {}), tmp_path, safe_serialization=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is no JSON"):
        inspect(tmp_path / "model.safetensors")


def test_a_repository_is_named_by_owner_and_name() -> None:
    with pytest.raises(InputError, match=r"expected hf-hub:OWNER/REPO"):
        from_hub("timm")
