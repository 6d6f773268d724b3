"""Feature inversion: pictures that a layer cannot tell from the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

import interp
from interp.types import Batch

QUICK = interp.PGD(100.0, "l2", steps=10, step_size=0.5, targeted=True, random_start=False, loss="features")


def test_the_distance_falls_and_is_that_of_the_picture_it_comes_with(tiny: Callable[..., interp.Model], samples: Batch) -> None:
    model = tiny("resnet")
    found = interp.invert([model], samples[:2], interp.Invert(attack=QUICK)).data
    assert (found["distance"] < found["begun"]).all()
    inputs = [torch.from_numpy(found[name].values).movedim(-1, -3) for name in ("original", "start")]
    wanted, begun, end = (
        model.net.forward_head(model.net.forward_features((x - model.mean) / model.std), pre_logits=True)
        for x in (*inputs, torch.from_numpy(found["picture"].values[0]).movedim(-1, -3))
    )
    for name, features in (("begun", begun), ("distance", end)):
        distance = (features - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert torch.allclose(torch.from_numpy(found[name].values[0]), distance, rtol=1e-4)


def test_an_image_is_its_own_inversion(tiny_models: list[interp.Model], samples: Batch) -> None:
    twice = samples[[3, 3]]
    found = interp.invert(tiny_models, twice, interp.Invert(attack=QUICK, start="images")).data
    assert (found["distance"] == 0).all() and (found["begun"] == 0).all()
    assert (found["picture"] == found["original"]).all()


def test_a_layer_by_name_and_no_hook_is_left(tiny: Callable[..., interp.Model], samples: Batch) -> None:
    model = tiny("xcit")
    found = interp.invert([model], samples[:2], interp.Invert("blocks.0", QUICK, "images")).data
    assert (found["distance"] < found["begun"]).all()
    assert (found["start"].values[0] == found["original"].values[1]).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_makes_no_sense_is_refused(tiny: Callable[..., interp.Model], samples: Batch) -> None:
    model = tiny("resnet")
    with pytest.raises(interp.InputError, match="there is no layer 'blocks'"):
        interp.invert([model], samples[:1], interp.Invert("blocks", QUICK))
    with pytest.raises(interp.InputError, match="one image has no other to start from"):
        interp.invert([model], samples[:1], interp.Invert(attack=QUICK, start="images"))
    with pytest.raises(interp.InputError, match="start is 'grey'; expected one of noise, images"):
        interp.Invert(start="grey")
    for change in ({"loss": "ce"}, {"targeted": False}):
        with pytest.raises(interp.InputError, match="a targeted attack on the loss features"):
            interp.Invert(attack=dataclasses.replace(QUICK, **change))
