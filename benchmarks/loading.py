"""How long it takes to find out what a file is, beside torch reading the same bytes with its weights-only reader.

XCiT-S12 (391 tensors) bare, 105 MB; as a MadryLab-like training file in the legacy container, with two copies of the weights
and a refused global, 210 MB; as safetensors. Each is timed in turn, best of five, in one process after imports. `interp` opens,
checks, hashes, unwraps, detects and counts, torch only reads. Run: python benchmarks/loading.py [--threads N]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

from interp.models.answers import Said
from interp.models.describe import as_text, counted
from interp.models.fits import skeleton
from interp.models.inspect import inspect

HERE = Path(__file__).parent
SAID = Said(arch="xcit_small_12_p16_224", normalise="none")


def best(run: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of a few runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def fresh(path: Path) -> str:
    """What `interp inspect` prints, the architecture built and counted anew."""
    skeleton.cache_clear()
    counted.cache_clear()
    return as_text(inspect(path, SAID))


def files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Name → file, and how torch (or safetensors) itself reads it."""
    weights = timm.create_model("xcit_small_12_p16_224").state_dict()
    torch.save(weights, folder / "bare.pt")
    both = {f"module.model.{k}": v for k, v in weights.items()}
    both |= {f"module.attacker.model.{k}": v.clone() for k, v in weights.items()}
    content = {"model": both, "epoch": 90, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "bare.safetensors")

    def allowed(path: Path) -> Any:
        with torch.serialization.safe_globals([argparse.Namespace]):  # which the weights-only reader refuses otherwise
            return torch.load(path, map_location="cpu", weights_only=True)

    return {
        "torch zip, bare": (folder / "bare.pt", lambda p: torch.load(p, map_location="cpu", weights_only=True)),
        "torch legacy, two copies, refused globals": (folder / "legacy.pt", allowed),
        "safetensors": (folder / "bare.safetensors", load_file),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, peer) in files(Path(folder)).items():
            as_text(inspect(path, SAID))  # timm's and torch's own lazy imports
            ours = best(lambda p=path: fresh(p))
            theirs = best(lambda p=path, read=peer: read(p))
            seconds = {"interp_s": round(ours, 3), "peer_s": round(theirs, 3), "ratio": round(ours / theirs, 1)}
            rows.append({"file": name, "MB": round(path.stat().st_size / 1e6, 1), **seconds})
            print(rows[-1])
    made = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    (HERE / "loading.json").write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
