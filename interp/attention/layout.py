"""Where attention lies in each architecture family, as data: one row per family.

Kinds of attention, by what the rows and columns of a weight matrix stand for:

- self:    tokens × tokens, prefix tokens (class, registers) first (ViT, arXiv 2010.11929; also timm's attention pool without
           parameters, AttentionPoolPrr)
- class:   one query, the class token, over class token and patches (CaiT, arXiv 2103.17239, section 3.2)
- latent:  one query, a learnt vector that is no token, over all tokens, or over the patches alone where timm's
           pool_include_prefix is off: the attention pool of SigLIP (arXiv 2303.15343)
- mean:    one query, the mean of the patches, over itself and the patches: the attention pool of CLIP's ResNets (2103.00020,
           section 2.4); the rows of the patches, which the module computes and drops, are left out
- talking: tokens × tokens, mixed between heads after the softmax, so that rows need not sum to 1 (arXiv 2003.02436)
- difference: tokens × tokens, softmax − λ·softmax, of any sign; rows sum to 1 − λ (differential transformer, arXiv 2410.05258,
           eq. 1)
- linear:  tokens × tokens as relu(q)·relu(k)ᵀ divided by its sums, which the model never forms: derived (EfficientViT, arXiv
           2205.14756, section 3.1); half of the heads attend to aggregates of 5 × 5 tokens
- factorised: tokens × tokens as q·softmax(k)ᵀ, of any sign and never formed either: derived (CoaT, arXiv 2104.06399); its
           convolution of the values is no part of it
- pooled:  tokens × tokens, where queries or keys may stand on a coarser grid (PVT v2, arXiv 2106.13797; MViT v2, 2112.01526;
           LeViT, 2104.01136); where they do not, the same as self
- unfold:  patches × patches, one matrix for each pixel position inside a patch (MobileViT, arXiv 2110.02178, section 3.1)
- window:  tokens × tokens inside a window (Swin, arXiv 2103.14030, section 3.2), or of a grid that takes every k-th position
           (MaxViT, 2204.01697)
- halo:    a block of queries × the block and a halo around it, so that windows of keys overlap (HaloNet, arXiv 2103.12731);
           what lies outside the image is padding, which gets weight and has no value
- outlook: tokens × tokens inside windows that overlap, all from the window's centre by a linear layer, not by q·k; a position
           adds up what it gets in its windows, so that its weights sum to their number, less at borders, where padding
           takes a part of them (VOLO, arXiv 2106.13112, section 3.1)
- global-query: as window, where queries come from the whole image and are the same in every window, keys and values from the
           window (GCViT, arXiv 2206.09959, section 3.2; timm before 1.0.31 mixes up the queries of the images of a batch)
- context: one row of scores over the patches, for each pixel position of a patch (MobileViT v2, arXiv 2206.02680, section 3.1)
- channel: channels × channels, no place in the image (XCA of XCiT, arXiv 2106.09681, eq. 2; EdgeNeXt, 2206.10589; DaViT,
           2204.03645, whose first version weighs its q); never drawn as a map

Convolutions between attention layers, as most hybrids have, are no part of any weights. Nor are the layers in UNREAD, which
attend and are not captured: readings say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from torch import nn

from interp.attention import places as at
from interp.attention.places import Where
from interp.types import InputError

if TYPE_CHECKING:
    from interp.models.model import Model

Kind: TypeAlias = Literal[
    "self",
    "class",
    "latent",
    "mean",
    "talking",
    "difference",
    "linear",
    "factorised",
    "pooled",
    "unfold",
    "window",
    "halo",
    "outlook",
    "global-query",
    "context",
    "channel",
]
T = TypeVar("T")
ONE: Mapping[str, str] = {  # kinds of one query, which has no place in the image: what it is
    "class": "the class token",
    "latent": "a learnt latent",
    "mean": "the mean of the patches",
}
SIGNED: Mapping[str, str] = {  # kinds whose weights can be negative: why
    "talking": "talking heads mix weights to any sign",
    "difference": "a difference of two softmaxes has any sign",
    "factorised": "queries times softmaxed keys have any sign",
}
DERIVED: Mapping[str, str] = {  # kinds whose weights the model never forms: of what they are derived
    "linear": "linear attention",
    "factorised": "factorised attention",
}
POOLS = ("AttentionPoolLatent", "AttentionPoolPrr", "AttentionPool2d", "RotAttentionPool2d")  # around which nothing is skipped
PARALLEL = {  # classes of modules that run several attentions of one input side by side: how
    "ParallelThingsBlock": "its blocks add up several attentions that run side by side (arXiv 2203.09795)",
    "ParallelPartitionAttention": "its attentions within windows and within grids run side by side",
}
UNREAD = {  # classes of layers that attend and are not captured
    "LambdaLayer": "lambda layers, which form no weights",
    "BatNonLocalAttn": "bilinear attention transforms, which weigh rows and columns apart",
}


@dataclass(frozen=True)
class Layout:
    """How one family attends. modules: timm class name of an attention module → kind; empty where there is none.

    A name may be `Class.child`, the child of that name in modules of that class. gradcam: path inside `model.net` of the layer
    that class activation maps read by default; an index below zero counts from the end. places: class name, or `Class.child`, of
    the modules that tell where tokens are → how (see places.py); empty where the patch embedding tells it. heads: axis of the
    heads among weights (n, …, queries, keys). why: why there are no weights to capture, where modules are missing though the
    family is said to attend. unchained: why its layers cannot be multiplied with one another.
    """

    family: str
    gradcam: str
    modules: Mapping[str, Kind] = field(default_factory=dict)
    places: Mapping[str, Where] = field(default_factory=dict)
    heads: int = 1
    why: str = ""
    unchained: str = ""


# Where a class token is read, the layer of class activation maps is the input of the last attention: behind it the patches no
# longer reach the head, and the gradient there is zero (pytorch-grad-cam issues 363 and 513).
_ROWS = (
    Layout("xcit", "blocks.-1", {"ClassAttn": "class", "XCA": "channel"}),
    Layout("cait", "blocks.-1", {"ClassAttn": "class", "TalkingHeadAttn": "talking"}),
    Layout(
        "visiontransformer",
        "blocks.-1.norm1",
        {
            "Attention": "self",
            "AttentionRope": "self",
            "ParallelScalingBlock": "self",
            "DiffAttention": "difference",
            "DiffParallelScalingBlock": "difference",
            "AttentionPoolLatent": "latent",
            "AttentionPoolPrr": "self",
        },
    ),
    Layout("visiontransformerdistilled", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("visiontransformerrelpos", "blocks.-1.norm1", {"RelPosAttention": "self"}),
    Layout("beit", "blocks.-1.norm1", {"Attention": "self"}),
    Layout("eva", "blocks.-1.norm1", {"EvaAttention": "self", "AttentionRope": "self", "AttentionPoolLatent": "latent"}),
    Layout(
        "naflexvit",
        "blocks.-1.norm1",
        {"Attention": "self", "EvaAttention": "self", "AttentionRope": "self", "AttentionPoolLatent": "latent"},
        {"NaFlexVit": at.image},
    ),
    Layout("convit", "blocks.-1.norm1", {"GPSA": "self", "MHSA": "self"}),
    Layout("deepseekvitclassifier", "encoder.blocks.-1", {"AttentionRope": "self"}),
    Layout("qwen3vitclassifier", "encoder.blocks.-1", {"AttentionRope": "self"}),
    Layout("gemma4vitclassifier", "encoder.blocks.-1", {"Gemma4Attention": "self"}, {"Gemma4VitEncoder": at.image_of_patches}),
    Layout("visiontransformersam", "blocks.-1", {"Attention": "window"}, {"Block": at.windows}),
    Layout(
        "tnt",
        "blocks.-1.norm_out",
        {"Block.attn_in": "window", "Block.attn_out": "self"},
        {"Block.attn_in": at.tnt_pixels, "Block.norm_out": at.tnt_patches},
    ),
    Layout(
        "crossvit",
        "blocks.-1.blocks.-1",
        {"Attention": "self", "CrossAttention": "class"},
        {"Attention": at.crossvit, "CrossAttention": at.crossvit},
        unchained="its two branches, of different patches, exchange their class tokens between layers",
    ),
    Layout("poolingvisiontransformer", "transformers.-1.blocks.-1.norm1", {"Attention": "self"}, {"Transformer": at.pit}),
    Layout("visformer", "stage3", {"Attention": "self"}, {"Attention": at.channels_first}),
    Layout(
        "volo",
        "network.-1",
        {"OutlookAttention": "outlook", "Attention": "self", "ClassAttention": "class"},
        {"OutlookAttention": at.outlook, "Attention": at.channels_last},
    ),
    # hierarchies
    Layout("pyramidvisiontransformerv2", "stages.-1", {"Attention": "pooled"}, {"Attention": at.reduced}),
    Layout(
        "twins",
        "norm",
        {"LocallyGroupedAttn": "window", "GlobalSubSampleAttn": "pooled"},
        {"LocallyGroupedAttn": at.windows_told, "GlobalSubSampleAttn": at.reduced},
        heads=-3,
    ),
    Layout(
        "multiscalevit",
        "stages.-1.blocks.-1.norm1",
        {"MultiScaleAttention": "pooled"},
        {"MultiScaleAttention": at.mvit},
    ),
    Layout("hiera", "blocks.-1", {"MaskUnitAttention": "pooled"}, {"HieraBlock": at.mask_units}),
    Layout("hieradet", "blocks.-1", {"MultiScaleAttention": "pooled"}, {"MultiScaleBlock": at.pooled_windows}),
    Layout(
        "levit",
        "stages.-1",
        {"Attention": "self", "AttentionDownsample": "pooled"},
        {"Attention": at.fixed, "AttentionDownsample": at.shrinking},
    ),
    Layout(
        "levitdistilled",
        "stages.-1",
        {"Attention": "self", "AttentionDownsample": "pooled"},
        {"Attention": at.fixed, "AttentionDownsample": at.shrinking},
    ),
    Layout("efficientformer", "stages.-1", {"Attention": "self"}, {"Flat": at.channels_first}),
    Layout(
        "efficientformerv2",
        "stages.-1",
        {"Attention2d": "talking", "Attention2dDownsample": "pooled"},
        {"Attention2d.q": at.channels_first, "Attention2dDownsample": at.halving},
    ),
    Layout("nextvit", "stages.-1", {"EfficientAttention": "pooled"}, {"NextTransformerBlock.norm1": at.runs}),
    Layout("fastvit", "final_conv", {"Attention": "self"}, {"Attention": at.channels_first}),
    Layout("metaformer", "stages.-1", {"Attention": "self"}, {"MetaFormerStage": at.metaformer}),
    Layout("shvit", "stages.-1", {"SHSA": "self"}, {"SHSA": at.channels_first}),
    Layout("lowformer", "stages.-1", {"ConvAttention": "self"}, {"ConvAttention.pwise": at.channels_first}),
    Layout("cpubone", "stages.-1", {"ConvAttention": "self"}, {"ConvAttention.pwise": at.channels_first}),
    Layout("csatv2", "stages.-1", {"Attention": "self"}, {"TransformerBlock.pos_embed": at.told}),
    # windows
    Layout("mobilevit", "final_conv", {"Attention": "unfold"}, {"MobileVitBlock.conv_1x1": at.pixels}),
    Layout("mobilevitv2", "stages.-1", {"LinearSelfAttention": "context"}, {"MobileVitV2Block.conv_1x1": at.pixels}),
    Layout("swintransformer", "norm", {"WindowAttention": "window"}, {"SwinTransformerBlock": at.merged}),
    Layout("swintransformerv2", "norm", {"WindowAttention": "window"}, {"SwinTransformerV2Block": at.merged}),
    Layout("swintransformerv2cr", "stages.-1", {"WindowMultiHeadAttention": "window"}, {"SwinTransformerV2CrBlock": at.merged}),
    Layout("nest", "levels.-1", {"Attention": "window"}, {"Attention": at.blocks}),
    Layout("tinyvit", "stages.-1", {"Attention": "window"}, {"TinyVitBlock": at.windows}),
    Layout("globalcontextvit", "stages.-1", {"WindowAttentionGlobal": "window"}, {"GlobalContextVitBlock": at.windows}),
    Layout(
        "maxxvit",
        "stages.-1",
        {
            "PartitionAttentionCl.attn": "window",
            "PartitionAttention2d.attn": "window",
            "ParallelPartitionAttention.attn_block": "window",
            "ParallelPartitionAttention.attn_grid": "window",
            "TransformerBlock2d.attn": "self",
        },
        {
            "PartitionAttentionCl": at.partition,
            "PartitionAttention2d": at.partition_channels_first,
            "ParallelPartitionAttention.norm1": at.parallel_windows,
            "ParallelPartitionAttention.attn_grid": at.parallel_grids,
            "TransformerBlock2d.attn": at.channels_first,
        },
    ),
    Layout(
        "davit",
        "stages.-1",
        {"WindowAttention": "window", "ChannelAttention": "channel", "ChannelAttentionV2": "channel"},
        {"SpatialBlock": at.windows_channels_first, "ChannelBlock": at.channels_first},
    ),
    Layout(
        "efficientvitmsra",
        "stages.-1",
        {"CascadedGroupAttention": "window"},
        {"LocalWindowAttention": at.windows_as_built},
    ),
    Layout("iformer", "stages.-1", {"SHMA": "window"}, {"SHMA": at.windows_channels_first}),
    # channels
    Layout("edgenext", "stages.-1", {"CrossCovarianceAttn": "channel"}, {"SplitTransposeBlock": at.channels_first}),
    # convolutional networks, some of which attend in their last stages
    Layout(
        "mobilenetv3",
        "blocks.-1",
        {"MultiQueryAttention2d": "pooled", "Attention2d": "self"},
        {"MultiQueryAttention2d": at.multi_query, "Attention2d": at.channels_first},
    ),
    Layout("mobilenetv5", "blocks.-1", {"MultiQueryAttention2d": "pooled"}, {"MultiQueryAttention2d": at.multi_query}),
    Layout(
        "byobnet",
        "stages",
        {"BottleneckAttn": "self", "HaloAttn": "halo", "AttentionPool2d": "mean", "RotAttentionPool2d": "mean"},
        {
            "BottleneckAttn": at.channels_first,
            "HaloAttn": at.halo,
            "AttentionPool2d": at.channels_first,
            "RotAttentionPool2d": at.channels_first,
        },
    ),
    Layout("resnet", "layer4"),
    Layout("preactresnet", "layer4"),
    Layout("preactresnetdm", "layer_3"),
    Layout("wideresnet", "block3"),
    Layout("wideresnetdm", "layer"),
    Layout("wideresnetstages", "blocks"),
    Layout("convnext", "stages"),
    # products of queries with keys and values, whose weights are derived; and what forms none
    Layout(
        "coat",
        "serial_blocks4.-1.norm1",
        {"FactorAttnConvRelPosEnc": "factorised"},
        {"ConvPosEnc": at.told, "FactorAttnConvRelPosEnc": at.coat},
        unchained="rows of its factorised weights sum to any number of any sign and are no shares",
    ),
    Layout("efficientvit", "stages.-1", {"LiteMLA": "linear"}, {"LiteMLA": at.channels_first}),
    Layout("efficientvitlarge", "stages.-1", {"LiteMLA": "linear"}, {"LiteMLA": at.channels_first}),
    Layout(
        "swiftformer",
        "stages.-1",
        why="its attention is additive: queries are summed to one vector that multiplies all keys (arXiv 2303.15446)",
    ),
    Layout("efficientvim", "norm.-1", why="its mixer is a state space model (arXiv 2411.15241), which has no attention weights"),
    Layout("focalnet", "layers.-1", why="it modulates by convolutions instead of attending (arXiv 2203.11926)"),
)
LAYOUTS: dict[str, Layout] = {row.family: row for row in _ROWS}


def layout_of(model: Model) -> Layout:
    """The row of the model's family; for others, without attention, one made of the last map that timm lists as a feature.

    Raises InputError, naming the known families, where there is neither.
    """
    if model.family in LAYOUTS:
        return LAYOUTS[model.family]
    path = _last_feature(model.net)
    if path is None:
        raise InputError(f"model {model.card.id} is of the family {model.family!r}, {_unknown()}")
    return Layout(model.family, path)


def map_layer(model: Model) -> str:
    """The layer that class activation maps of a model read by default.

    Blocks of parallel attention and MLP call their norm `in_norm`; those of several attentions side by side have one for each,
    so that the layer is what the last block is given: the block before it, or where it is alone `norm_pre`.
    """
    path = layout_of(model).gradcam
    block, _, name = path.rpartition(".")
    last = module_at(model.net, block) if name == "norm1" else None
    if last is None or hasattr(last, "norm1"):
        return path
    if type(last).__name__ == "ParallelThingsBlock":
        above = block.removesuffix(".-1")
        return f"{above}.-2" if len(list(module_at(model.net, above).children())) > 1 else "norm_pre"
    return f"{block}.in_norm" if hasattr(last, "in_norm") else path


def unchained(model: Model) -> str:
    """Why the layers of a model cannot be multiplied with one another, "" where they can."""
    reasons = [PARALLEL[type(m).__name__] for m in model.net.modules() if type(m).__name__ in PARALLEL]
    return layout_of(model).unchained or (reasons[0] if reasons else "")


def _unknown() -> str:
    return (
        "whose attention is unknown here; families with attention are "
        f"{', '.join(row.family for row in _ROWS if row.modules)}. Add a row to interp/attention/layout.py, "
        "or use a class activation map (Grad-CAM) and name its layer"
    )


def _last_feature(net: nn.Module) -> str | None:
    """The path of the last of timm's `feature_info`, where there is such a module."""
    listed = getattr(net, "feature_info", None)
    path = listed[-1].get("module") if isinstance(listed, list) and listed and isinstance(listed[-1], dict) else None
    return path if path and path in dict(net.named_modules()) else None


def matching(net: nn.Module, table: Mapping[str, T]) -> Iterator[tuple[str, nn.Module, nn.Module, T]]:
    """Modules that a table of class names, or of `Class.child`, names: (path, module, the module of that class, entry)."""
    modules = dict(net.named_modules())
    for path, module in modules.items():
        above, _, child = path.rpartition(".")
        owner = modules[above]
        for name, whose in ((type(module).__name__, module), (f"{type(owner).__name__}.{child}", owner)):
            if name in table:
                yield path, module, whose, table[name]


def has_attention(model: Model) -> bool:
    """Whether the model has attention that is known here; False for families that are unknown."""
    row = LAYOUTS.get(model.family)
    return row is not None and any(True for _ in matching(model.net, row.modules))


def unread(model: Model) -> str:
    """In words which layers attend and are not captured, "" where there are none."""
    found = [(UNREAD[type(m).__name__], name) for name, m in model.net.named_modules() if type(m).__name__ in UNREAD]
    names = {what: [name for kind, name in found if kind == what] for what, _ in found}
    said = [f"{what} ({of[0]}{f' and {len(of) - 1} more' if len(of) > 1 else ''})" for what, of in names.items()]
    return " and ".join(said)


def reason_without(model: Model) -> str:
    """Why a model has no attention to capture, in one clause."""
    row = LAYOUTS.get(model.family)
    if left := unread(model):
        return f"what attends in it is not captured here: {left}"
    if row is None:
        return f"attention of the family {model.family!r} is unknown here"
    return row.why or "it has no attention module that is known here"


def why_not(model: Model) -> str:
    """Why a model has no attention to capture, and what to do instead."""
    row, reason, left = LAYOUTS.get(model.family), reason_without(model), unread(model)
    if row is None and not left:
        return f"model {model.card.id} is of the family {model.family!r}, {_unknown()}"
    if row is not None and not row.why and not left:
        reason += f"; families with attention are {', '.join(row.family for row in _ROWS if row.modules)}"
    return f"model {model.card.id} (family {model.family}): {reason}. Use a class activation map for this one (Grad-CAM)"


def attention_layers(model: Model) -> dict[str, Kind]:
    """Every attention module of a model: its path inside `model.net` → kind, in the order of definition.

    Raises InputError with the reason, naming the families with attention, where the model has none.
    """
    row = LAYOUTS.get(model.family)
    found = {path: _kind(module, kind) for path, module, _, kind in matching(model.net, row.modules)} if row else {}
    if not found:
        raise InputError(why_not(model))
    return found


def _kind(module: nn.Module, kind: Kind) -> Kind:
    """As the row has it; GCViT has layers of two kinds of one class."""
    return "global-query" if getattr(module, "use_global", False) else kind


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
