"""Where attention lies in each architecture family, as data: one row per family.

Kinds of attention, by what the rows and columns of a weight matrix stand for:

- self:    tokens × tokens, prefix tokens (class, registers) first (ViT, arXiv 2010.11929)
- class:   one query, the class token, over class token and patches (CaiT, arXiv 2103.17239, section 3.2)
- talking: tokens × tokens, mixed between heads after the softmax, so that rows need not sum to 1 (arXiv 2003.02436)
- unfold:  patches × patches, one matrix for each pixel position inside a patch (MobileViT, arXiv 2110.02178, section 3.1)
- window:  tokens × tokens inside a window (Swin, arXiv 2103.14030, section 3.2)
- context: one row of scores over the patches, for each pixel position of a patch (MobileViT v2, arXiv 2206.02680, section 3.1)
- channel: channels × channels, no place in the image (XCA of XCiT, arXiv 2106.09681, eq. 2); never drawn as a map
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn

from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model

Kind: TypeAlias = Literal["self", "class", "talking", "unfold", "window", "context", "channel"]


@dataclass(frozen=True)
class Layout:
    """How one family attends. modules: timm class name of an attention module → kind; empty where there is none.

    gradcam: path inside `model.net` of the layer that class activation maps read by default; an index below zero counts from
    the end.
    """

    family: str
    gradcam: str
    modules: Mapping[str, Kind] = field(default_factory=dict)


# Where a class token is read, the layer of class activation maps is the input of the last attention: behind it the patches no
# longer reach the head, and the gradient there is zero (pytorch-grad-cam issues 363 and 513).
_ROWS = (
    Layout("xcit", "blocks.-1", {"ClassAttn": "class", "XCA": "channel"}),
    Layout("cait", "blocks.-1", {"ClassAttn": "class", "TalkingHeadAttn": "talking"}),
    Layout("visiontransformer", "blocks.-1.norm1", {"Attention": "self", "AttentionRope": "self"}),
    Layout("visiontransformerdistilled", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("beit", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("eva", "blocks.-1.norm1", {"EvaAttention": "self", "AttentionRope": "self"}),
    Layout("mobilevit", "final_conv", {"Attention": "unfold"}),
    Layout("mobilevitv2", "stages.-1", {"LinearSelfAttention": "context"}),
    Layout("swintransformer", "norm", {"WindowAttention": "window"}),
    Layout("swintransformerv2", "norm", {"WindowAttention": "window"}),
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


def has_attention(model: Model) -> bool:
    """Whether the model's family is known to attend; False for families that are unknown here."""
    return model.family in LAYOUTS and bool(LAYOUTS[model.family].modules)


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
            f"attention are {having}. Use a class activation map for this one (interp.attention.cam)"
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
