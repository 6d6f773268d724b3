"""What the benchmarks share: a clock, turns of several peers in one process, models, and numbers kept in JSON and README.

A shared machine's speed swings by a third, so only times taken in turn, in one process, are compared: `rounds` lets every peer
run once per round, in another order each time, and `ratio` is the median of the rounds' ratios. With one thread on a processor
they are seconds of processor time (user and system), else of the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import interp
from interp.models.chunks import tuned
from interp.models.engine import Engine
from interp.models.model import Model
from interp.types import Card, Images, Labels, Preprocess

HERE = Path(__file__).parent
README = HERE / "README.md"
T = TypeVar("T")
Columns = Mapping[str, Callable[[dict[str, Any]], object]]  # heading → what a row says under it


class Clock:
    """Seconds since it was made, and those spent inside what it wraps; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.inside = device, 0.0
        self.start = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def total(self) -> float:
        return self.now() - self.start

    def around(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = self.now()
            try:
                return run(*args)
            finally:
                self.inside += self.now() - start

        return timed


def clock_of(device: torch.device) -> str:
    """What rounds are timed by: processor time, which other programs hardly touch, where one thread does all the work."""
    return "processor time" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall time"


def seconds_now(device: torch.device) -> float:
    """The clock's reading, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if clock_of(device) == "processor time" else time.perf_counter()


def rounds(peers: Mapping[str, Callable[[], T]], times: int, device: torch.device) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Seconds of every peer in every round, and what each returned last. Rounds begin with another peer each time."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    returned: dict[str, T] = {}
    names = list(peers)
    for k in range(times):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            gc.collect()
            begin = seconds_now(device)
            returned[name] = peers[name]()
            seconds[name].append(seconds_now(device) - begin)
    return seconds, returned


def ratio(theirs: list[float], ours: list[float]) -> list[float]:
    """How many times longer a peer takes: median of the rounds' ratios, least, largest."""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return [round(v, 3) for v in (statistics.median(each), min(each), max(each))]


def times_text(found: list[float] | None) -> str:
    """A ratio with its range, as tables print it."""
    return "–" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def fastest(run: Callable[[int], Any], sizes: list[int], device: torch.device) -> tuple[int, dict[str, float]]:
    """The batch size of least time per sample, and milliseconds per sample at each of them, best of two after a warm run."""
    taken: dict[str, float] = {}
    for size in sizes:
        try:
            run(size)
        except torch.OutOfMemoryError:
            break
        seconds, _ = rounds({"": lambda size=size: run(size)}, 2, device)  # type: ignore[misc]
        taken[str(size)] = round(1e3 * min(seconds[""]) / size, 2)
    return int(min(taken, key=taken.__getitem__)), taken


def product_rate(device: torch.device) -> float:
    """Floating-point operations a second of the fastest of ten float32 products of large square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.rand(side, side, device=device)
    seconds, _ = rounds({"": lambda: a @ a}, 10, device)
    return 2 * side**3 / min(seconds[""])


def sizes_to(n: int) -> list[int]:
    """1, 2, 4, … up to n."""
    return [2**k for k in range(n.bit_length())]


@dataclass(frozen=True)
class Subject:
    """A model as interp loads it, the same as anyone else has it (`plain`), and images with the labels it gives them itself."""

    name: str
    model: Model
    plain: Model
    x: Images
    y: Labels

    def first(self, n: int) -> Subject:
        return Subject(self.name, self.model, self.plain, self.x[:n], self.y[:n])


def subject(name: str, n: int, device: torch.device, *, px: int = 0, images: str = "samples:cifar10") -> Subject:
    """n images on a shipped model, all of which it reads correctly, or (px given) on timm's architecture with random weights.

    Fewer images than n are repeated. `plain` is as any other library loads it: weights that require
    gradients, torch's own NCHW layout.
    """
    model = (random_model(name, px) if px else interp.load(name)).to(device)
    batch = interp.images("samples:imagenet" if px else images, n=n if px else 4 * n, preprocess=model.card.preprocess)
    x = batch.images.to(device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(8)])
    kept = torch.arange(len(x)) if px else (y.cpu() == batch.labels).nonzero()[:, 0]
    at = kept[torch.arange(n) % len(kept)].to(device)
    plain = copy.deepcopy(model).requires_grad_(True).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Subject(name, model, plain, x[at].contiguous(), y[at])


def random_model(arch: str, px: int) -> Model:
    """timm's architecture with seeded random weights that compute something: its batch norms have seen noise.

    Residual branches that timm starts at 0 are weighted by 0.2; at 1 the ReLUs' kinks make the gradient of a random ResNet-50 so
    rough that float32 gets it wrong by 1 %, whoever computes it.
    """
    import timm

    torch.manual_seed(0)
    net: nn.Module = timm.create_model(arch)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the plain average of what it sees
            norm.weight.clamp_(min=0.2)
        net.train()(torch.randn(4, 3, px, px))
    card = Card(arch, arch, 1000, Preprocess(px, px, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    return Model(net, card)


def passed(net: nn.Module, x: Images, y: Labels) -> Tensor:
    """One bare pass forward and backward to the input: the gradient of the cross-entropy."""
    x = x.detach().requires_grad_(True)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), y, reduction="sum"), x)
    return g


def chunk_of(runner: Engine, of: Subject, n: int) -> tuple[int, float]:
    """The chunk size up to n that interp finds fastest when the work is long enough to measure it, and the seconds that took."""
    clock = Clock(of.x.device)
    step = lambda part: passed(runner.steps, part, of.y[:1].expand(len(part)))  # noqa: E731
    found = tuned(step, of.x, n=n, passes=10**9, key=f"benchmark {of.name} {runner.words} {n}")
    return found, round(clock.total(), 1)


def processor() -> str:
    """The processor's name and its widest vectors, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx512f", "avx2") if name in told.get("flags", "").split()]
    return " ".join([told.get("model name", platform.machine()), *vectors[:1]])


def machine(device: torch.device) -> str:
    """Where and with what the numbers were measured, in words."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{place}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


class Record:
    """Rows by machine in a JSON file: measuring one anew replaces it, all others stay."""

    def __init__(self, file: Path, key: tuple[str, ...]) -> None:
        self.file, self.key = file, key
        self.machines: dict[str, list[dict[str, Any]]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def add(self, where: str, row: dict[str, Any]) -> None:
        """Take a row in, print it and write the file, so that a run cut short keeps what it has."""
        rows = self.machines.setdefault(where, [])
        same = [k for k, old in enumerate(rows) if all(old.get(name) == row.get(name) for name in self.key)]
        rows[same[0] if same else len(rows) :] = [row, *rows[same[0] + 1 :]] if same else [row]
        print(json.dumps(row), flush=True)
        self.file.write_text(json.dumps(self.machines, indent=1) + "\n", encoding="utf-8")


def table(columns: Columns, rows: list[dict[str, Any]]) -> str:
    """Rows as a markdown table."""
    lines = [list(columns), ["---"] * len(columns), *([str(text(row)) for text in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(record: Record, kinds: Mapping[str, Columns]) -> str:
    """All rows as markdown, by machine and by kind of row."""
    parts = []
    for where, rows in record.machines.items():
        parts.append(f"{where}, {' and '.join(sorted({row['clock'] for row in rows if 'clock' in row}))}:")
        parts += [table(columns, own) for kind, columns in kinds.items() if (own := [r for r in rows if r["rows"] == kind])]
    return "\n\n".join(parts)


def publish(record: Record, kinds: Mapping[str, Columns], given: argparse.Namespace) -> None:
    """Print the tables or put them between their marks in the README; end with an error where peers came to different results."""
    text, name = tables(record, kinds), f"{record.file.stem}.py"
    if given.table or given.quick:
        print(text)
    elif text:
        begin, end = f"<!-- {name}: written by the script -->", f"<!-- {name}: end -->"
        before, _, rest = README.read_text(encoding="utf-8").partition(begin)
        README.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    apart = [f"{row['rows']} {row['model']}" for rows in record.machines.values() for row in rows if not row.get("agree", True)]
    if apart:
        raise SystemExit(f"peers came to different results: {', '.join(apart)}")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What both benchmarks can be told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the processor, then a GPU where there is one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured")
    return parser


def devices(given: argparse.Namespace) -> list[torch.device]:
    """The one asked for, or the processor and then a GPU; says so where there is none. None where only tables are asked for."""
    if given.table:
        return []
    wanted = [given.device] if given.device else ["cpu", "cuda"]
    if "cuda" in wanted and not torch.cuda.is_available():
        print("no CUDA device here: the rows of a GPU are skipped", flush=True)
        wanted.remove("cuda")
    return [torch.device(name) for name in wanted]
