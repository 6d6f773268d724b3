"""Where attention lies in each architecture family, as data: one row per family.

Kinds of attention, by what the rows and columns of a weight matrix stand for:

- class:   one query, the class token, over class token and patches (CaiT, arXiv 2103.17239, section 3.2)
- self:    tokens × tokens, prefix tokens (class, registers) first (ViT, arXiv 2010.11929)
- channel: channels × channels, no place in the image (XCA of XCiT, arXiv 2106.09681, eq. 2); never drawn as a map
- unfold:  patches × patches, one matrix for each pixel position inside a patch (MobileViT, arXiv 2110.02178, section 3.1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn

from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model

Kind: TypeAlias = Literal["class", "self", "channel", "unfold"]
Grid: TypeAlias = tuple[int, int]  # rows and columns of patches


@dataclass(frozen=True)
class Layout:
    """How one family attends. modules: timm class name of an attention module → kind; empty where there is none.

    gradcam: path of Grad-CAM's default layer inside `model.net`; an index below zero counts from the end. block: class
    of the module that unfolds its feature map around the attention (MobileViT), else "".
    """

    family: str
    gradcam: str
    modules: Mapping[str, Kind] = field(default_factory=dict)
    block: str = ""


# The ViT row's Grad-CAM layer is the input of the last attention: behind it the patches no longer reach a class-token head,
# and the gradient there is zero (pytorch-grad-cam issues 363 and 513).
_ROWS = (
    Layout("xcit", "blocks.-1", {"ClassAttn": "class", "XCA": "channel"}),
    Layout("cait", "blocks.-1", {"ClassAttn": "class", "TalkingHeadAttn": "self"}),
    Layout("visiontransformer", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("visiontransformerdistilled", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("mobilevit", "final_conv", {"Attention": "unfold"}, block="MobileVitBlock"),
    Layout("resnet", "layer4"),
    Layout("preactresnet", "layer4"),
    Layout("preactresnetdm", "layer_3"),
    Layout("wideresnet", "block3"),
    Layout("wideresnetdm", "layer"),
    Layout("wideresnetstages", "blocks"),
    Layout("convnext", "stages"),
    Layout("byobnet", "stages"),
)
LAYOUTS: dict[str, Layout] = {row.family: row for row in _ROWS}


def layout_of(model: Model) -> Layout:
    """The row of the model's family; raises InputError, naming the known families, where there is none."""
    if model.family not in LAYOUTS:
        raise InputError(
            f"model {model.card.id} is of the family {model.family!r}, whose attention is unknown here; known families are "
            f"{', '.join(LAYOUTS)}. Add a row to interp/attention/layout.py, or use Grad-CAM and name its layer"
        )
    return LAYOUTS[model.family]


def attention_layers(model: Model) -> dict[str, Kind]:
    """Every attention module of a model: its path inside `model.net` → kind, in the order of definition.

    Raises InputError, naming the families with attention, where the model has none.
    """
    layout = layout_of(model)
    found = {n: layout.modules[type(m).__name__] for n, m in model.net.named_modules() if type(m).__name__ in layout.modules}
    if not found:
        having = ", ".join(row.family for row in _ROWS if row.modules)
        raise InputError(
            f"model {model.card.id} (family {model.family}) has no attention module that is known here; families with "
            f"attention are {having}. Use Grad-CAM for this one (interp.attention.gradcam)"
        )
    return found


def module_at(net: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; an index below zero counts a container's children from the end."""
    here = net
    for part in path.split("."):
        children = dict(here.named_children())
        if part.startswith("-") and part[1:].isdigit() and 0 < int(part[1:]) <= len(children):
            here = list(children.values())[int(part)]
        elif part in children:
            here = children[part]
        else:
            raise InputError(
                f"no layer is at {path!r}: {type(here).__name__} has no {part!r}; it has {', '.join(children) or 'none'}"
            )
    return here


def patch_grid(embed: nn.Module, args: tuple[Any, ...], output: Any) -> Grid:
    """Rows and columns of patches of one pass, from what the patch embedding was given and what it returned.

    XCiT's returns (tokens, (rows, columns)); a ViT of any image size returns (n, rows, columns, c); others return
    (n, tokens, c) and compute the grid from the image size.
    """
    if isinstance(output, tuple):
        return int(output[1][0]), int(output[1][1])
    if output.ndim == 4:
        return int(output.shape[1]), int(output.shape[2])
    rows, columns = embed.dynamic_feat_size(tuple(args[0].shape[-2:]))  # type: ignore[operator]  # timm's method
    return int(rows), int(columns)
