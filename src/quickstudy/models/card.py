"""A model card (Mitchell et al., 2019) in Markdown, from what the model file says about itself, and nothing else."""

from __future__ import annotations

from typing import Any

from quickstudy.images.decoding import MARGIN, OWN_RESIZE, InputSpec
from quickstudy.learning.scores import SEVERAL_FIGURES, told_of_never_held_out
from quickstudy.models.model import Model
from quickstudy.wording import as_percent, count


def model_card(model: Model, name: str) -> str:
    """Write a card in Markdown: what the model is, what it learned from, how good it is and what it is not for.

    Args:
        model: a loaded model.
        name: the heading.
    """
    training: dict[str, Any] = _mapping(model.metadata.get("training"))
    return "\n".join(
        [
            f"# {name}",
            "",
            f"An image classifier that gives any number of {count(len(model.classes), 'label')}, made by quickstudy."
            if model.thresholds
            else f"An image classifier of {count(len(model.classes), 'class', 'classes')}, made by quickstudy.",
            "",
            "## Accuracy",
            "",
            *_accuracy(training, bool(model.thresholds)),
            *(
                ["", "These are the scores of the model that it was exported from."]
                if "export" in model.metadata
                else []
            ),
            "",
            "## Classes and data",
            "",
            *_classes(model, training),
            "",
            "## Network",
            "",
            *_network(model, training),
            "",
            "## Input and output",
            "",
            f"`image`: uint8, N×{'×'.join(map(str, model.input.shape))}, RGB from 0 to 255; normalisation is inside. "
            f"The image upright, {_fitted(model.input)}, {_resized(model.input)}.",
            f"`probabilities`: float32, N×{len(model.classes)}, in the order of the classes above."
            + (" A label is given from its threshold in the table on." if model.thresholds else ""),
            *_strangeness(model),
            "",
            "## Limits",
            "",
            "- It knows the labels above and no others."
            if model.thresholds
            else "- It knows the classes above and no others: an image of anything else is taken for one of them"
            + (", unless it is strange enough." if model.refusal else "."),
            f"- {_reach(training)}: `quickstudy evaluate MODEL IMAGES`.",
            "- Gaps in its training images, and in those of the pretrained network, limit it in ways that one number "
            "does not show; look at each class.",
            "",
            "## Versions",
            "",
            *_versions(model),
            "",
        ]
    )


def _reach(training: dict[str, Any]) -> str:
    """Say which images the accuracy holds for, up to how it is measured for others."""
    if _mapping(training.get("test")).get("n"):
        return "The accuracy holds for images like those of the test split; for others, measure it"
    if _mapping(training.get("cross_validation")).get("n"):
        return (
            "No images were kept to test it, and the accuracy holds for images like those it learned from; measure it"
        )
    return "Its accuracy is not known; measure it"


def _strangeness(model: Model) -> list[str]:
    if (refusal := model.refusal) is None:
        return []
    low, high = (f"{100 * end:.1f}" for end in refusal.interval)
    return [
        "`strangeness`: float32, N, the share of the model's own images that are less strange. Above "
        f"{refusal.threshold:g}, an image is of none of the classes; that refuses {as_percent(refusal.share)} of the "
        f"own ones (95 % interval {low} to {high} %, n = {refusal.n:,}).",
    ]


def _accuracy(training: dict[str, Any], several: bool) -> list[str]:
    lines = []
    for name, called in SEVERAL_FIGURES.items():
        figure = _mapping(_mapping(training.get("figures")).get(name))
        if figure.get("value") is not None:
            low, high = (f"{100 * end:.1f}" for end in figure["interval_95"])
            lines.append(
                f"- {called}, on the test split: {as_percent(figure['value'])} (95 % interval {low} to {high} %)."
            )
    for key, words in (
        ("test", "On the test split, looked at once"),
        ("cross_validation", "Cross-validated on the training images"),
    ):
        score = _mapping(training.get(key))
        words += ", all labels right" if several else ""
        words += " where each is given from 50 % on" if several and key == "cross_validation" else ""
        if score.get("n") and score.get("accuracy") is not None:
            ends = [f"{100 * end:.1f}" for end in score.get("interval_95", ())]
            interval = f"95 % interval {' to '.join(ends)} %, " if ends else ""
            line = f"- {words}: {as_percent(score['accuracy'])} ({interval}n = {score['n']:,})"
            alone = training.get("never_held_out") if key == "cross_validation" else None
            if isinstance(alone, int):
                line += f"; {told_of_never_held_out(alone, score['n'], several=several)}"
            lines.append(f"{line}.")
    return lines or ["Not known: the file holds no score."]


def _classes(model: Model, training: dict[str, Any]) -> list[str]:
    counts = _mapping(training.get("train_counts"))
    if thresholds := model.thresholds:
        lines = ["| label | training images | threshold |", "|---|---:|---:|"]
        lines += [
            f"| {_cell(name)} | {counts.get(name, '–')} | {value:.3f} |"
            if value <= 1
            else f"| {_cell(name)} | {counts.get(name, '–')} | never given |"
            for name, value in thresholds.items()
        ]
    else:
        lines = ["| class | training images |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {counts.get(name, '–')} |" for name in model.classes]
    facts = [
        ("Data", training.get("data")),
        ("Fingerprint of data, labels and split (SHA-256)", training.get("data_fingerprint")),
        ("Split", training.get("split")),
    ]
    return [*lines, "", *(f"- {label}: {_cell(value)}" for label, value in facts if value)]


def _fitted(spec: InputSpec) -> str:
    """Say what becomes of an image that is not square."""
    words = {
        "crop": f"its centred square ({100 * spec.crop:g} % of the shorter side)",
        "pad": f"all of it, in its proportions, in the middle of a square of grey ({MARGIN} in all three colours)",
        "squash": "all of it, both sides brought to the same length",
    }
    several = f"{spec.tiles} squares of the shorter side, spread evenly along the longer one, one above the other"
    return words.get(spec.fit, several)


def _resized(spec: InputSpec) -> str:
    """Say how an image is resized."""
    if spec.resize == OWN_RESIZE:
        return "each side halved while it is at least twice as long as wanted, then resized bilinearly, not antialiased"
    return f"resized from all its pixels by Pillow's {spec.resize.split('-')[1]} filter (`{spec.resize}`)"


def _network(model: Model, training: dict[str, Any]) -> list[str]:
    backbone, recipe, export = (_mapping(model.metadata.get(key)) for key in ("backbone", "recipe", "export"))
    lines = []
    if backbone:
        lines.append(f"- Backbone `{backbone.get('name')}`, frozen up to `{backbone.get('cut')}`.")
        lines.append(f"- Its fingerprint: `{backbone.get('fingerprint')}`.")
        tuned = training.get("fine_tuning")
        lines.append("- What follows was fine-tuned." if tuned else "- A linear head on signed square roots follows.")
        if share := _mapping(training.get("prior")).get("share"):
            lines.append(f"- What the names of the classes say has a share of {_cell(share)} of its logits.")
    if recipe:
        lines.append(f"- Trained from scratch with the recipe `{recipe.get('name')}`, {training.get('steps')} steps.")
    if export:
        lines.append(f"- Exported as {export.get('kind')} from the model with the checksum `{export.get('source')}`.")
    return lines or ["Not known: the file does not say."]


def _versions(model: Model) -> list[str]:
    versions = _mapping(model.metadata.get("versions"))
    return [f"- {_cell(name)} {_cell(version)}" for name, version in versions.items()]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cell(value: object) -> str:
    """Write a value as it stands, on one line, without what Markdown would take for a column or HTML."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
