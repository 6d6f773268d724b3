"""The sentences of a report: what is seen, from the numbers of a result, and how it was computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interp.plots.attacks import NORMS, choices, judges, number, size
from interp.plots.images import class_names, name_of
from interp.plots.matrices import TWINS, by_group, further_judges, who_judges
from interp.plots.perturbations import per_image, shares
from interp.plots.style import counted, epsilon, labels, rows
from interp.result import Result

CONTRIBUTION = "What each pixel contributes to the label's logit, in sum its change from where the method begins"
MEANINGS = {  # of captum's methods whose attributions sum to no change of the logit
    "Saliency": "The absolute gradient of the label's logit",
    "InputXGradient": "The image times the gradient of the label's logit",
    "SmoothGrad": "The mean gradient of the label's logit over noisy copies of the image",
    "SmoothGradSquare": "The mean squared gradient of the label's logit over noisy copies of the image",
    "VarGrad": "The variance of the gradient of the label's logit over noisy copies of the image",
    "GuidedBackprop": "The gradient of the label's logit, of which each ReLU passes back only what is positive and where it was active",
    "Deconvolution": "The gradient of the label's logit, of which each ReLU passes back only what is positive, active or not",
    "LRP": "The label's logit, handed back from layer to layer by the ε rule",
    "Occlusion": "How far the label's logit falls where windows over the pixel take the baseline",
    "FeatureAblation": "How far the label's logit falls where the superpixel takes the baseline, shared out to its pixels",
    "Lime": "The weight of the superpixel in a sparse linear model of the label's logit, shared out to its pixels",
}


@dataclass(frozen=True)
class Text:
    """A section's words: title, what is seen, how it was computed."""

    title: str
    seen: str
    how: str


def pairs(result: Result) -> list[tuple[int, int]]:
    """Positions of (standard, robust) twins: one architecture, one of each."""
    data = result.data
    found = []
    for group in dict.fromkeys(data["group"].values.tolist()):
        members = [i for i in range(data.sizes["model"]) if data["group"].values[i] == group]
        robust = [i for i in members if data["robust"].values[i]]
        standard = [i for i in members if not data["robust"].values[i]]
        if len(robust) == 1 and len(standard) == 1:
            found.append((standard[0], robust[0]))
    return found


def versus(result: Result, values: np.ndarray, form: str = ".2f") -> str:
    """'XCiT 0.38 → 0.21' for each pair of twins: standard first, then robust."""
    names = labels(result.data)
    each = [f"{names[r].removesuffix(' robust')} {values[s]:{form}} → {values[r]:{form}}" for s, r in pairs(result)]
    return ", ".join(each)


def interval(result: Result, name: str, m: int, form: str = ".0%") -> str:
    """Mean and interval of one model's measure."""
    d = result.data
    return f"{d[name].values[m]:{form}} [{d[f'{name}_low'].values[m]:{form}}, {d[f'{name}_high'].values[m]:{form}}]"


def accuracy(result: Result) -> Text:
    """Worth of each model on the page's images."""
    data, attack = result.data, result.params["attack"]
    each = "; ".join(
        f"{labels(data)[m]}: clean {interval(result, 'clean', m)}, under attack {interval(result, 'attacked', m)}"
        + (f", under AutoAttack {interval(result, 'autoattack', m)}" if "autoattack" in data else "")
        for m in rows(data)
    )
    n = data["clean"].attrs["n"]
    small = " With so few images the intervals are wide: the cards' numbers, from more images, weigh more." if n < 200 else ""
    return Text(
        "Accuracy on these images",
        f"{each}.{small}",
        f"n = {n}. Attack: {attack['norm'].replace('linf', 'L∞')} PGD, {epsilon(attack['eps'])}, {attack['steps']} steps of "
        f"{(attack['step_size'] or 0) * 255:g}/255, random start, on cross-entropy and then on the margin for the images that are left; "
        "an image counts as robust only where both fail. 95 % Wilson intervals. This is an upper bound on robustness.",
    )


def sweep(result: Result) -> Text:
    """What grows with ε, and whether other models see it."""
    data = result.data
    first, last = size(result, 0), size(result, data.sizes["eps"] - 1)
    unbounded = result.params["attack"]["norm"] == "linf" and float(data["eps"].max()) >= 1
    arithmetic = data.attrs.get("arithmetic") if result.params.get("precision") == "fast" else None
    searched = f"Arithmetic of the search: {arithmetic}. " if arithmetic else ""
    free = "At ε = 1 (L∞) every image is within reach and only the box [0, 1] binds. " if unbounded else ""
    reached, others = shares(data, toward=True)[0], per_image(data, "others", toward=True).mean(-1)
    who = "Judges, the models of other architectures," if judges(data) == "judges" else "Other models, of the same architecture,"
    judged = (
        f"{who} have that much confidence in the target at {last}: "
        f"{versus(result, others[:, -1], '.0%') or _each(result, others[:, -1])}. "
    )
    return Text(
        "Perturbations as ε grows",
        f"Share of images that each model comes to see as the target, of those it did not see so before, standard → robust: at {first} "
        f"{versus(result, reached[:, 0], '.0%') or _each(result, reached[:, 0])}; at {last} "
        f"{versus(result, reached[:, -1], '.0%') or _each(result, reached[:, -1])}. {'' if np.isnan(others).any() else judged}A change of mind "
        "at small ε is a weakness; what a model has learnt of a class is what it writes into the image once ε is large.",
        f"{_attack(result)}, per image away from its class and toward {'each' if data.sizes['direction'] > 2 else 'another'}. "
        f"{free}{searched}The picture itself is shown, not the difference.",
    )


def _attack(result: Result) -> str:
    """'L∞ PGD, 50 steps of 1.5·ε/steps', and what was chosen otherwise than by default."""
    attack = result.params["attack"]
    apgd, given = attack.get("rule") == "apgd", attack["step_size"]
    steps = "" if apgd else f" of {number(given)}" if given else " of 1.5·ε/steps"
    others = [words for words in choices(result) if words != "APGD"]
    return ", ".join([f"{NORMS[attack['norm']]} {'APGD' if apgd else 'PGD'}", f"{attack['steps']} steps{steps}", *others])


def synthesis(result: Result) -> Text:
    """Whether others recognise what a model draws."""
    data, attack = result.data, result.params["attack"]
    own, others = data["own"].values.mean((1, 2)), data["others"].values.mean((1, 2))
    d = 3 * data.sizes["y"] * data.sizes["x"]
    free = " (unbounded but for the box)" if attack["eps"] >= {"linf": 1, "l2": d**0.5, "l1": d}[attack["norm"]] else ""
    ours = (result.params.get("start", "noise"), attack["norm"], attack["eps"], attack["step_size"], *choices(result))
    source = ", as in the notebook of arXiv 2209.07399" if ours == ("noise", "linf", 15.0, None) else ""
    chance = 1 / (len(class_names(data)) or data.sizes["target"])
    who = "models of other architectures" if judges(data) == "judges" else "other models, of the same architecture"
    said = (
        f"Mean confidence in the target of {who}, the test of what was drawn (standard → robust): "
        f"{versus(result, others, '.0%') or _each(result, others)}; chance is {chance:.0%}. "
    )
    start = {
        "noise": "From one uniform noise image per class",
        "gaussian": "From a draw of a Gaussian fitted to the images of each class",
        "images": "From an image of another class than each target",
    }[result.params.get("start", "noise")]
    return Text(
        result.title.removesuffix(" toward each class"),
        f"{'' if np.isnan(others).any() else said}Each model's own confidence says only that the attack worked: "
        f"{versus(result, own, '.0%') or _each(result, own)}.",
        f"{start}, the same for all models: targeted {_attack(result)}, ε = {number(attack['eps'])}{free}{source}.",
    )


def gradients(result: Result) -> Text:
    """How persistent, large, smooth and spread out the gradients are."""
    data, params, attack = result.data, result.params, result.params["attack"]

    def said(values: np.ndarray, form: str = ".2f") -> str:
        return versus(result, values, form) or _each(result, values, form)

    turns = (
        f"Neighbouring gradients have cosine (standard → robust) {said(data['cosine'].values)}: where it is near 1 the loss is smooth and "
        "gradients add up, where it is near 0 they cancel. "
        if "cosine" in data
        else ""
    )
    if "method" in params:
        how = MEANINGS.get(params["method"].removeprefix("captum:"), CONTRIBUTION)
    elif "attribution" in data:
        explained = "the label's logit" if params.get("loss") in (None, "logit") else f"−{params['loss']} of the label"
        how = f"What each pixel contributes to {explained}, along {params['n']} points ({params['over']})"
    elif params["over"] == "steps":
        how = f"Mean of ∇ₓ {params.get('loss') or attack['loss']} over the {attack['steps']} iterates of an untargeted {NORMS[attack['norm']]} PGD, ε = {number(attack['eps'])}"
    else:
        how = "Mean of ∇ₓ of the loss over " + (
            "the images of each class" if params["over"] == "class" else f"{params['n']} draws, {params['over']}"
        )
    return Text(
        result.title if "method" in params else "Accumulated input gradients",
        f"{turns}Root mean square, standard → robust: {said(data['size'].values.mean(1), '.1e')}. Spectral centroid in cycles per pixel, 0.38 for "
        f"white noise: {said(data['centroid'].values)}. Gini index, 0 where spread evenly over the pixels: {said(data['gini'].values)}.",
        f"{how}. Each panel is in units of its own root mean square, printed below it, and all panels share one scale: the pattern is compared, "
        "the size is read from the number.",
    )


def attention(result: Result) -> Text:
    """How each family's picture was read."""
    data = result.data
    peak = np.quantile(data["map"].values[:, 0], 0.99, axis=(1, 2, 3))
    methods = "; ".join(f"{labels(data)[m]}: {data['how'].values[m, 0]}" for m in rows(data))
    return Text(
        "Attention",
        f"How strongly attention gathers: its 99th percentile over pixels in multiples of the mean (standard → robust) "
        f"{versus(result, peak, '.1f') or _each(result, peak, '.1f')}. 1 would be a uniform map.",
        f"{methods}. Maps are enlarged bilinearly from the layer's grid. The three readings are different quantities: "
        "compare a robust model with its standard twin, not attention with Grad-CAM.",
    )


def compare(result: Result) -> Text:
    """What the measures say of twins, in the words of their verdicts and no others."""
    data, tables = result.data, by_group(result)
    titles: dict[str, list[str]] = {}
    for name in (name for names in tables.values() for name in names):
        titles.setdefault(str(data[name].attrs["verdict"]), []).append(f"“{data[name].attrs['long_name']}”")
    of_twins = [f"{said.removeprefix(TWINS)}: {', '.join(of)}" for said, of in titles.items() if said.startswith(TWINS)]
    others = [f"{said[:1].upper()}{said[1:]} ({', '.join(of)})." for said, of in titles.items() if not said.startswith(TWINS)]
    seen = [f"Robust models against their standard twins, by measure: {'; '.join(of_twins)}."] if of_twins else []
    attacked = {"perturbation", "appearance", "alignment", "written"} & set(tables)
    left_out = data.attrs.get("skipped", "")
    return Text(
        "Semantic attributes",
        " ".join([*seen, *others]),
        f"{_compared(result) if attacked else ''}95 % bootstrap intervals over images, or the units that a measure names. A value is "
        "printed where it differs from its control, measured on the same units, as it should; models are compared in pairs on the "
        "same units. p is the larger of a bootstrap of t and Student's t, Holm-corrected over all measures, pairs and models."
        + (f" Left out: {left_out}." if left_out else ""),
    )


def _compared(result: Result) -> str:
    """How the perturbations of a comparison were made and read."""
    attack = result.params["attack"]
    apart = who_judges(result.data).startswith("judges")
    who = f"judges are {'the models of other architectures, the same for both twins' if apart else 'the other models'}"
    if further := further_judges(result.data):
        who += f", among them {', '.join(further)}, which only judge"
    return (
        f"{counted(result.data.sizes['image'])}. δ: targeted {attack['norm'].replace('linf', 'L∞')} PGD, {epsilon(attack['eps'])}, "
        f"{attack['steps']} steps, each image toward one other class; {who}. Chance is {result.data.attrs['chance']:.0%}. In place of δ and of gradients the control has noise, "
        "and for how they look those of networks with random parameters, on fewer images. "
    )


def _each(result: Result, values: np.ndarray, form: str = ".0%") -> str:
    return ", ".join(f"{labels(result.data)[m]} {values[m]:{form}}" for m in rows(result.data))


__all__ = ["Text", "accuracy", "attention", "compare", "gradients", "name_of", "sweep", "synthesis"]
