"""Levels: what one forward pass knows besides its last features, in one tensor beside `features`.

A network's last pooled layer says what its training asked for. Earlier blocks know of texture, pattern and cut, which
other questions need (Evci et al., "Head2Toe", 2022, arXiv:2201.03529). So a graph with maps also gives `levels`: the
features, then the mean and the deviation over all places of each channel of a few blocks, then the deviation of the map
that the features are the mean of. On the clothing photos they lower the cross-validated log loss of Lite0 from 0.289 to
0.261 nats; means alone reach 0.282. They cost no second pass, but 8 kB an image in float16 where the features take 2.5.

A transformer's blocks give tokens instead of maps; of those, means and deviations are over the patches. Its blocks are
all of one shape, so five of them are taken, spread evenly, the last among them.

The blocks of other networks are found by one rule for all of them: the last one of each shape, the five nearest to the
features. More blocks of the same shape (8 of Lite0's, as others chose) reach 0.256, with 5,200 values instead of 4,048.

Several networks are joined in the same way: each gets the image, or the middle of it where it is for less than the
others, made smaller in the graph where it takes fewer pixels, and their features and levels stand side by side. To
everything that follows, it is one backbone with one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from quickstudy.backbones.cuts import FEATURES, LEVELS, Cut, Level
from quickstudy.backbones.graphs.comparison import TOLERANCE, run_until, sample_images
from quickstudy.backbones.graphs.cutting import keep_until, opset_of
from quickstudy.backbones.graphs.tokens import mean_of, patches_of
from quickstudy.errors import BackboneError, first_line
from quickstudy.images.decoding import InputSpec

_BLOCKS = 5
_JOINED_OPSET = 13  # the first in which Split's widths are an input


def add_levels(model: onnx.ModelProto, cuts: Sequence[Cut], *, prefix: int = 0) -> tuple[Level, ...]:
    """Let a graph give `levels` beside `features`, and list the groups of features in it.

    There are none where it has neither maps nor tokens.

    Args:
        model: gets the nodes.
        cuts: the cuts of the graph, from the image on; the last is `features`.
        prefix: number of a transformer's tokens that are no patches, and come first.
    """
    graph, width = model.graph, cuts[-1].values
    if any(LEVELS in node.output for node in graph.node):
        return ()  # a tensor of its own has the name
    if blocks := [cut for cut in cuts if len(cut.shape) == 2]:
        return _add_token_levels(model, blocks, width, prefix)
    maps = [cut for cut in cuts if len(cut.shape) == 3 and cut.shape[1:] != (1, 1)]
    if not maps:
        return ()
    last = [
        cut
        for cut, following in zip(maps, [*maps[1:], None], strict=True)
        if following is None or following.shape != cut.shape
    ]
    pooled_last = last[-1].shape[0] == width  # then its mean is the features
    groups = [Level(name=FEATURES, width=width, last=True)]
    tensors = [FEATURES]
    for cut in last[-_BLOCKS - pooled_last :]:
        mean, deviation = _pooled(graph, cut.name)
        if not (pooled_last and cut is last[-1]):
            groups.append(Level(name=f"mean of {cut.name}", width=cut.shape[0]))
            tensors.append(mean)
        groups.append(Level(name=f"deviation of {cut.name}", width=cut.shape[0]))
        tensors.append(deviation)
    graph.node.append(helper.make_node("Concat", tensors, [LEVELS], name=LEVELS, axis=1))
    return tuple(groups)


def _add_token_levels(model: onnx.ModelProto, blocks: Sequence[Cut], width: int, prefix: int) -> tuple[Level, ...]:
    """Add the levels of a transformer: mean and deviation of the patches after a few blocks, spread evenly."""
    graph = model.graph
    groups, tensors = [Level(name=FEATURES, width=width, last=True)], [FEATURES]
    count = min(_BLOCKS, len(blocks))
    for cut in (blocks[(number + 1) * len(blocks) // count - 1] for number in range(count)):
        begin = f"{LEVELS}/{cut.name}"
        patches = patches_of(model, cut.name, prefix, f"{begin}/patches")
        mean = mean_of(model, patches, f"{begin}/mean_token", keep=True)
        for operator, inputs, output in (
            ("Flatten", [mean], "mean"),
            ("Sub", [patches, mean], "centred"),
            ("Mul", [f"{begin}/centred"] * 2, "squares"),
        ):
            graph.node.append(helper.make_node(operator, inputs, [f"{begin}/{output}"], name=f"{begin}/{output}"))
        variance = mean_of(model, f"{begin}/squares", f"{begin}/variance", keep=False)
        deviation = f"{begin}/deviation"
        graph.node.append(helper.make_node("Sqrt", [variance], [deviation], name=deviation))
        groups.extend(Level(name=f"{what} of {cut.name}", width=cut.shape[1]) for what in ("mean", "deviation"))
        tensors.extend((f"{begin}/mean", deviation))
    graph.node.append(helper.make_node("Concat", tensors, [LEVELS], name=LEVELS, axis=1))
    return tuple(groups)


def _pooled(graph: onnx.GraphProto, tensor: str) -> tuple[str, str]:
    """Add nodes for mean and deviation of each channel of a map; return the names of the two tensors (N×channels)."""
    begin = f"{LEVELS}/{tensor}"
    for operator, inputs, output in (
        ("GlobalAveragePool", [tensor], "mean_map"),
        ("Flatten", ["mean_map"], "mean"),
        ("Sub", [tensor, "mean_map"], "centred"),
        ("Mul", ["centred", "centred"], "squares"),
        ("GlobalAveragePool", ["squares"], "variance_map"),
        ("Flatten", ["variance_map"], "variance"),
        ("Sqrt", ["variance"], "deviation"),
    ):
        names = [name if name == tensor else f"{begin}/{name}" for name in inputs]
        graph.node.append(helper.make_node(operator, names, [f"{begin}/{output}"], name=f"{begin}/{output}"))
    return f"{begin}/mean", f"{begin}/deviation"


def join_graphs(
    parts: Sequence[tuple[str, onnx.ModelProto, InputSpec, tuple[Level, ...]]],
) -> tuple[onnx.ModelProto, InputSpec, tuple[Level, ...]]:
    """Join networks into one graph whose `features` and `levels` are all of theirs.

    Args:
        parts: name, graph with `features` and, where it has levels, `levels`, how an image becomes its input, and the
            groups of features in `levels`.

    Returns:
        The graph, how an image becomes its input, and all groups, the last features first. The input is as large a part
        of an image as the largest of theirs, in so many pixels that none of them has to make its own larger; it is
        resized as that of the most pixels, and fitted as all of theirs, or else cropped.

    Graphs of older versions of the ONNX standard are raised to that of the newest.

    Raises:
        BackboneError: a graph cannot be raised.
    """
    opset = max(_JOINED_OPSET, *(opset_of(model) for _, model, _, _ in parts))
    specs = [spec for _, _, spec, _ in parts]
    crop, fits = max(spec.crop for spec in specs), {spec.fit for spec in specs}
    size = max(round(spec.size * crop / spec.crop) for spec in specs)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    for name, model, spec, levels in parts:
        width = sum(level.width for level in levels)
        one = _raised(name, keep_until(model, LEVELS, (width,)), opset, spec.size)
        source, middle = "image", round(size * spec.crop / crop)
        if middle < size:
            source, begin = f"{name}/middle", (size - middle) // 2
            bounds = {"starts": [begin] * 2, "ends": [begin + middle] * 2, "axes": [1, 2]}
            tensors.extend(numpy_helper.from_array(np.array(v), f"{source}/{what}") for what, v in bounds.items())
            nodes.append(
                helper.make_node("Slice", ["image", *(f"{source}/{n}" for n in bounds)], [source], name=source)
            )
        if spec.size < middle:
            shown, source = source, f"{name}/resized"
            nodes.extend(_made_smaller(shown, source, f"{name}/scales"))
            scale = np.nextafter(np.float32(spec.size / middle), np.float32(1))  # rounded down, a pixel would be lost
            tensors.append(numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), f"{name}/scales"))
        part = compose.add_prefix(one, f"{name}/")
        for node in part.graph.node:
            node.input[:] = [source if given == f"{name}/image" else given for given in node.input]
            nodes.append(node)
        tensors.extend(part.graph.initializer)
        ends = np.cumsum([level.width for level in levels])
        lengths = numpy_helper.from_array(
            np.array([levels[0].width, int(ends[-1]) - levels[0].width]), f"{name}/widths"
        )
        tensors.append(lengths)
        split = [f"{name}/last", f"{name}/others"]
        nodes.append(helper.make_node("Split", [f"{name}/{LEVELS}", f"{name}/widths"], split, name=split[0], axis=1))
    names = [name for name, *_ in parts]
    nodes.append(helper.make_node("Concat", [f"{n}/last" for n in names], [FEATURES], name=FEATURES, axis=1))
    everything = [FEATURES, *(f"{name}/others" for name in names)]
    nodes.append(helper.make_node("Concat", everything, [LEVELS], name=LEVELS, axis=1))
    groups = [
        Level(name=f"{name} {level.name}", width=level.width, last=level.last)
        for wanted in (True, False)
        for name, _, _, levels in parts
        for level in levels
        if level.last == wanted
    ]
    graph = helper.make_graph(
        nodes,
        "+".join(names),
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", sum(g.width for g in groups if g.last)])],
        tensors,
    )
    newest = max(model.ir_version for _, model, _, _ in parts)
    joined = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=newest)
    widest = max(specs, key=lambda spec: spec.size)
    return joined, replace(widest, size=size, crop=crop, fit=fits.pop() if len(fits) == 1 else "crop"), tuple(groups)


def _raised(name: str, part: onnx.ModelProto, opset: int, size: int) -> onnx.ModelProto:
    """Raise a network up to its levels to an opset, by the onnx library's converter, and check that it gives the same.

    Raises:
        BackboneError: an operator cannot be raised, or what comes out differs.
    """
    if opset_of(part) == opset:
        return part
    images = [image[None] for image in sample_images(size)]
    try:
        raised = version_converter.convert_version(part, opset)
        before, after = (
            np.concatenate([run_until(model, [LEVELS], image)[0] for image in images]) for model in (part, raised)
        )
        far = float(np.abs(after - before).max() / max(np.abs(before).max(), np.finfo(np.float32).tiny))
    except Exception as error:  # the converter raises plain exceptions, and ONNX Runtime its own kinds
        why = first_line(error)
    else:
        if far <= TOLERANCE:
            return raised
        why = f"what comes out differs by {far:.1e} of the largest value"
    raise BackboneError(
        f"'{name}' is of opset {opset_of(part)} and cannot be raised to {opset} to be joined with the others: {why}. "
        f"Export it again with opset {opset}, or leave it out"
    ) from None


def _made_smaller(image: str, result: str, scales: str) -> list[onnx.NodeProto]:
    """Make the nodes that make an image smaller by linear interpolation, without rounding.

    Runtimes interpolate alike to a hundredth of a level. Rounded to bytes, one pixel in seventy would be a level off in
    PyTorch, whose probabilities then differed by up to 4e-4.
    """
    steps: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Resize", ["", scales], {"mode": "linear"}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    )
    names = [image, *(f"{result}/{number}" for number in range(1, len(steps))), result]
    return [
        helper.make_node(operator, [given, *others], [made], name=made, **attributes)
        for (operator, others, attributes), given, made in zip(steps, names, names[1:], strict=False)
    ]
