"""What a pass with its attention recorded costs beside a plain pass: every layer, or the last one that has a place in the image.

"consumed" hands each layer to a function that drops it, as the analyses do that reduce weights to maps or numbers; "kept" holds
the weights and values of all layers until the next pass; "last" records the last layer that is not channel attention. All are
`interp.attention.capture` on the model as interp loads it, and must give the logits of the plain pass bit for bit. timm's
architectures have random weights, the last one is shipped.

Run: python benchmarks/attention.py [--quick] [--device cpu|cuda] [--threads N] [--rounds N] [--only NAME]
Writes attention.json and the table in README.md; --table only prints it; --quick writes nothing here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from side_by_side import HERE, Columns, Record, arguments, clock_of, devices, machine, publish, ratio, rounds, subject, times_text
from torch import Tensor

from interp.attention.capture import capture
from interp.attention.layout import attention_layers
from interp.models.model import Model

PIXELS = {
    "deit_small_patch16_224": 224,
    "xcit_nano_12_p16_224": 224,
    "vit_small_patch8_224": 224,
    "mobilevit_xs": 256,
    "mobilevit_xxs": 256,
    "swin_tiny_patch4_window7_224": 224,
    "cait_xxs24_224": 224,
    "xcit_nano_d6w64_cifar10_linf": 0,  # shipped
}
PEERS = ("plain", "consumed", "last", "kept")


def recorded(model: Model, x: Tensor, peer: str) -> Tensor:
    """The logits of one pass, with what the peer records on the way."""
    if peer == "plain":
        return model(x)
    spatial = [name for name, kind in attention_layers(model).items() if kind != "channel"]
    layers = spatial[-1:] if peer == "last" else None
    with capture(model, layers=layers, consume=(lambda _layer: None) if peer == "consumed" else None):
        return model(x)


def weights_mb(model: Model, x: Tensor) -> float:
    """Megabytes of attention weights of all layers for one image."""
    sizes: list[int] = []
    with capture(model, consume=lambda layer: sizes.append(layer.weights.numel() * layer.weights.element_size())):
        model(x[:1])
    return round(sum(sizes) / 2**20, 2)


@torch.no_grad()
def measure(name: str, device: torch.device, given: argparse.Namespace) -> dict[str, Any]:
    """The row of one model: median seconds of each peer, and its time in units of the plain pass."""
    n = 1 if given.quick else (4 if PIXELS[name] else 64) * (8 if device.type == "cuda" else 1)
    of = subject(name, n, device, px=PIXELS[name])
    for peer in PEERS:
        recorded(of.model, of.x, peer)  # warm
    peers = {peer: lambda peer=peer: recorded(of.model, of.x, peer) for peer in PEERS}  # type: ignore[misc]
    seconds, logits = rounds(peers, 2 if given.quick else given.rounds, device)
    return {
        "rows": "pass",
        "model": name,
        "px": of.x.shape[-1],
        "images": n,
        "layers": len(attention_layers(of.model)),
        "weights_mb": weights_mb(of.model, of.x),
        "clock": clock_of(device),
        "rounds": len(seconds["plain"]),
        "seconds": {peer: round(statistics.median(taken), 4) for peer, taken in seconds.items()},
        "slower": {peer: ratio(taken, seconds["plain"]) for peer, taken in seconds.items() if peer != "plain"},
        "agree": all(torch.equal(found, logits["plain"]) for found in logits.values()),
    }


TABLES: dict[str, Columns] = {
    "pass": {
        "model": lambda row: f"{row['model']}, {row['px']} px",
        "images": lambda row: row["images"],
        "plain pass": lambda row: f"{1000 * row['seconds']['plain']:.0f} ms",
        "layers": lambda row: row["layers"],
        "weights, MB per image": lambda row: row["weights_mb"],
        **{name: lambda row, name=name: times_text(row["slower"][name]) for name in PEERS[1:]},  # type: ignore[misc]
    }
}


def main() -> None:
    given = arguments(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder if given.quick else HERE) / "attention.json", ("rows", "model", "images"))
        for device in devices(given):
            for name in (name for name in PIXELS if given.only in name):
                record.add(machine(device), measure(name, device, given))
        publish(record, TABLES, given)


if __name__ == "__main__":
    main()
