"""Writes the figures in README.md and docs/ from the JSON in benchmarks/results/.

    python benchmarks/tables.py

Replaces what stands between `<!-- figures: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from choice_tables import CHOICE_TABLES
from label_tables import LABEL_TABLES
from markdown import load, percent, ranged, table
from trust_tables import TRUST_TABLES

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Rewrite the pages."""
    for page in (
        ROOT / "README.md",
        ROOT / "docs" / "benchmarks.md",
        ROOT / "docs" / "train.md",
        ROOT / "docs" / "sweep.md",
        ROOT / "docs" / "finetune.md",
        ROOT / "docs" / "ship.md",
        ROOT / "docs" / "answers.md",
        ROOT / "docs" / "label.md",
    ):
        text = page.read_text(encoding="utf-8")
        for name, make in TABLES.items():
            pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda match, make=make: match[1] + make() + match[2], text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")


def summary() -> str:
    """The README's table."""
    warm, extraction, accuracy, keras = load("warm"), load("extraction"), load("accuracy"), load("keras")
    tuned, job = load("finetuning_accuracy"), load("keras_tutorial")
    clothing = {preset: found["whole"] for preset, found in load("levels")["sets"]["clothing"].items()}
    presets = (clothing["good"]["last"], clothing["good"]["chosen"], clothing["best"]["chosen"])
    rows = [
        [
            "Clothing photos (3,409 to train on, 10 classes), cross-validated: `--preset` fast, good, best",
            ", ".join(f"{100 * found['cv_accuracy']:.1f}" for found in presets) + " %",
        ],
        ["`--preset fast`, from nothing to the model", f"{warm['cold_seconds']:.1f} s"],
        ["The same again, nothing changed, process start to exit", f"{warm['warm_seconds']['median']:.1f} s"],
        [
            "Accuracy of that on the 372 test photos (95 % interval)",
            percent(accuracy["by_engine"]["onnxruntime"]["test"]),
        ],
        [
            f"Fine-tuned from `{tuned['cut']}`, {tuned['fine-tuned']['seconds']:.0f} s from nothing",
            percent(tuned["fine-tuned"]["test"]),
        ],
        [
            "JPEGs to bottlenecks, as a share of ONNX Runtime's bare loop on the same cores",
            _by_engine(extraction["share_of_bare"], 0, " %", scale=100),
        ],
        [
            "JPEGs to bottlenecks against Keras on TensorFlow, MobileNetV2",
            _by_engine(keras["extraction"]["MobileNetV2"]["ratio"], 1, " times"),
        ],
        ["the same, InceptionV3", _by_engine(keras["extraction"]["InceptionV3"]["ratio"], 1, " times")],
        [
            "Keras's tutorial job (InceptionV3, 244 photos, 2 epochs), faster the first time",
            _by_engine(
                {"onnxruntime": job["times_faster"]["first"], "openvino": job["times_faster"]["first_openvino"]},
                1,
                " times",
            ),
        ],
        ["the second time", f"{job['times_faster']['second']['median']:.0f} times"],
        ["`quickstudy --help`", f"{warm['help_seconds']['median']:.2f} s"],
    ]
    return table(["on two cores, no GPU", ""], rows)


def extraction() -> str:
    """Extraction against the bare loop, with its breakdown."""
    values = load("extraction")
    names = {
        "onnxruntime": "**quickstudy**, folder to store",
        "openvino": f"**quickstudy**, `--engine openvino` ({values['openvino'].partition('-')[2]})",
        "naive": "naive loop: Pillow, resize, run",
    }
    rates = table(
        ["", "images/s", "share of bare"],
        [
            ["ONNX Runtime, bare loop, no images", ranged(values["images_per_second"]["bare"], 0), ""],
            *(
                [
                    name,
                    ranged(values["images_per_second"][side], 0),
                    ranged(values["share_of_bare"][side], 1, scale=100) + " %",
                ]
                for side, name in names.items()
            ),
        ],
    )
    steps = values["milliseconds_an_image_and_core"]
    header = ["an image's milliseconds of one core", *next(iter(steps.values()))]
    rows = [[engine, *(f"{value:.2f}" for value in each.values())] for engine, each in steps.items()]
    return f"{rates}\n{table(header, rows)}\nThe bare loop: {values['bare_milliseconds_an_image_and_core']:.2f} ms.\n"


def _by_engine(values: dict[str, Any], digits: int, unit: str, *, scale: float = 1) -> str:
    ours, other = (f"{scale * values[side]['median']:.{digits}f}{unit}" for side in ("onnxruntime", "openvino"))
    return f"{ours}; {other} with `--engine openvino`"


def keras() -> str:
    """Keras on TensorFlow."""
    values, job = load("keras"), load("keras_tutorial")
    faster = job["times_faster"]
    sides = {
        "keras": "Keras, process start to exit",
        "keras_fit": "Keras, `fit` alone",
        "first": "quickstudy, first time, process",
        "first_openvino": "quickstudy, first time, `--engine openvino`, process",
        "second": "quickstudy, second, process",
        "second_work": "quickstudy, second, the work alone (against `fit`)",
    }
    rows = [
        [
            arch,
            ranged(row["images_per_second"]["keras"], 0),
            ranged(row["images_per_second"]["keras_tuned"], 0),
            engine,
            ranged(row["images_per_second"][engine], 0),
            ranged(row["ratio"][engine], 2),
            ranged(row["ratio_tuned"][engine], 2),
        ]
        for arch, row in values["extraction"].items()
        for engine in ("onnxruntime", "openvino")
    ]
    header = [
        "images/s", "Keras", "Keras, tuned by hand", "engine", "quickstudy", "times Keras", "times tuned Keras"
    ]  # fmt: skip
    return (
        table(header, rows)
        + "\n"
        + table(
            ["Keras tutorial's job", "seconds", "times faster"],
            [
                [name, ranged(job["seconds"][side], 2), ranged(job["times_faster"][side]) if side in faster else ""]
                for side, name in sides.items()
            ],
        )
    )


def warm() -> str:
    """The whole command."""
    values = load("warm")
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in values["warm_stages_seconds"].items())
    return table(
        ["", "seconds"],
        [
            ["cold, process start to exit", f"{values['cold_seconds']:.1f}"],
            ["warm, process start to exit", ranged(values["warm_seconds"], 2)],
            ["of which: imports, with Python's own start", ranged(values["imports_seconds"], 2)],
            ["of which, by stage", stages],
            ["`quickstudy --help`", ranged(values["help_seconds"], 2)],
        ],
    )


def growth() -> str:
    """Growth with the number of images."""
    rows = [
        [
            f"{row['images']:,}",
            row["state"],
            f"{row['wall_seconds']:.1f}",
            f"{row['stages_seconds']['bottlenecks']:.1f}",
            f"{row['stages_seconds']['head']:.1f}",
            f"{row['peak_megabytes']:,.0f}",
        ]
        for row in load("growth")["rows"]
    ]
    return table(["images", "", "seconds in all", "bottlenecks", "head", "peak MB"], rows)


def memory() -> str:
    """Memory of extraction."""
    rows = [[f"{row['images']:,}", f"{row['peak_megabytes']:.0f}"] for row in load("memory")["rows"]]
    return table(["images", "peak MB"], rows)


def accuracy() -> str:
    """Accuracy by the number of training images."""
    rows = [
        [
            size,
            *(f"{ranged(found['test'], 1, scale=100)} %" for found in presets.values()),
            ", ".join(f"{100 * found['cross_validated']['median']:.1f}" for found in presets.values()) + " %",
        ]
        for size, presets in load("accuracy_few")["sizes"].items()
    ]
    return table(["training images", "test: `fast`", "`good`", "`best`", "cross-validated"], rows)


def _scores(row: dict[str, Any]) -> list[str]:
    return [percent(row["cross_validation"]), f"{row['log_loss']:.4f}", percent(row["test"])]


def engines() -> str:
    """What bfloat16 costs in accuracy."""
    rows = [[name, *_scores(row), percent(row["model"])] for name, row in load("accuracy")["by_engine"].items()]
    return table(["engine", "cross-validated", "log loss", "test", "test, by the model in ONNX Runtime"], rows)


def engine_speeds() -> str:
    """Engines side by side, for convolutions and for a transformer."""
    values, rows = load("engines"), []
    names = {"efficientnet_lite0": "Lite0", "vit_small": "ViT-S/14, random weights"}
    told = {"bare": "bare loop, no images", "static": "(static 8 bits, tried)", "float16": "(float16, tried)"}
    for net, sides in values["networks"].items():
        for side, found in sides.items():
            head = values["heads"].get(side) if net == "efficientnet_lite0" else None
            rows.append(
                [
                    names[net],
                    told.get(side, f"`{side}`"),
                    ranged(found["processor_milliseconds_an_image"], 1),
                    ranged(found["share_of_bare_by_processor_time"], 0, scale=100) + " %",
                    "" if side in ("bare", "onnxruntime") else f"{100 * found['differs']:.1f} %",
                    f"{100 * head['cross_validated_accuracy']:.1f} %" if head else "",
                    f"{100 * head['accuracy_of_halves_in_float32']:.1f} %" if head else "",
                ]
            )
    header = ["network", "engine", "ms of one core an image", "share of bare", "bottlenecks differ by"]
    return table([*header, "cross-validated", "heads of halves, in float32"], rows)


def views() -> str:
    """Whether views help."""
    rows = [[name, *_scores(row)] for name, row in load("accuracy")["by_views"].items()]
    return table(["views besides the plain image", "cross-validated", "log loss", "test"], rows)


def faults() -> str:
    """What kills and competition did."""
    return "```json\n" + json.dumps({k: v for k, v in load("faults").items() if k != "machine"}, indent=1) + "\n```\n"


def training_step() -> str:
    """The classic network's step against its peers."""
    values = load("training_step")
    names = {
        "quickstudy": "**quickstudy**, with input pipeline, averages, summaries and checkpoints",
        "torch": "PyTorch, plain loop, one batch in memory",
        "torch_channels_last": "the same, channels last",
        "tensorflow": "Keras on TensorFlow, compiled step, one batch in memory",
    }
    rates = values["examples_per_second"]
    rows = [[text, ranged(rates[name], 0)] for name, text in names.items() if name in rates]
    share = (
        f"\n{ranged(values['times_fastest_peer'], 2)} times the fastest peer of each round; "
        f"{values['gigaflop_per_second']['median']:.0f} GFLOP/s, which is "
        f"{100 * values['share_of_gemm']['median']:.0f} % of torch's matrix product and "
        f"{100 * values['share_of_convolution']['median']:.0f} % of one large convolution, forward, in oneDNN.\n"
    )
    return table(["classic network, batch 128", "examples/s"], rows) + share


def training_race() -> str:
    """The fast recipe against the classic one."""
    values = load("training_race")
    rows = [
        [
            str(row["seed"]),
            f"{100 * row['precision']:.2f} %",
            f"{row['wall_seconds']:.1f}",
            f"{row['classic_seconds']:,.0f}",
            f"{row['times_sooner']:.1f}",
        ]
        for row in values["rows"]
    ]
    precision = values["precision"]
    mean = (
        f"\nMean {100 * precision['mean']:.2f} %, standard deviation {100 * precision['deviation']:.2f}; "
        f"{ranged(values['times_sooner'])} times sooner.\n"
    )
    header = [
        "seed",
        "accuracy",
        "seconds, process start to exit",
        "60,000 classic steps, seconds",
        "times sooner",
    ]
    return table(header, rows) + mean


def training_parts() -> str:
    """What the classic recipe's parts cost."""
    values = load("training_parts")
    steps, costs = values["milliseconds_a_step"], values["cost_percent"]
    rows = [[name, ranged(steps[name]), ranged(costs[name]) if name in costs else ""] for name in steps]
    spent = values["percent_of_the_time_spent_in"]
    shown = ", ".join(f"{name} {share:.1f} %" for name, share in spent.items())
    pipeline = values["pipeline"]
    text = (
        f"\nThe input pipeline, in blocks of 60 steps by turns: {ranged(pipeline['with'])} ms with it and "
        f"{ranged(pipeline['without'])} with one batch in memory; it costs {ranged(pipeline['cost_percent'])} %.\n"
        f"\nOf the training thread's time, measured inside the process: {shown}; together {sum(spent.values()):.1f} %. "
        f"A batch costs one core {values['batch_milliseconds_on_one_core']:.2f} ms.\n"
    )
    return table(["classic recipe", "ms a step", "what is left out costs, %"], rows) + text


def training_devices() -> str:
    """One process and two."""
    values = load("training_devices")
    rates = values["examples_per_second"]
    rows = [[f"{count} process{'es' if count != '1' else ''}", ranged(rate, 0)] for count, rate in rates.items()]
    return table(["classic recipe, two cores", "examples/s"], rows) + f"\nSpeed-up {ranged(values['speedup'], 2)}.\n"


def sweep() -> str:
    """The batch-norm study."""
    values = load("sweep")
    rows = [
        ["`quickstudy sweep batchnorm`, two workers", ranged(values["two_workers_seconds"])],
        ["the same, one worker", ranged(values["one_worker_seconds"])],
        [
            "a bare PyTorch loop in two processes, the same steps and evaluations",
            ranged(values["bare_two_processes_seconds"]),
        ],
    ]
    text = (
        f"\n{values['runs']} runs of {values['steps']:,} steps in all. Over the bare loop: "
        f"{ranged(values['overhead_over_bare_percent'])} %. Start-up, bookkeeping and pictures, over the "
        f"time inside the runs: {ranged(values['start_up_and_bookkeeping_percent'])} %. Two workers instead of one: "
        f"{ranged(values['times_one_worker'], 2)} times sooner.\n"
    )
    return table(["", "seconds, process start to exit"], rows) + text


def together() -> str:
    """Separate runs against runs that are trained together: what a device is asked for."""
    figures = {"operators_a_step": 0, "operators_an_evaluation": 0, "milliseconds_a_step": 1}
    rows = [
        [
            name,
            *(
                f"{of[how][figure]:,.{digits}f}"
                for figure, digits in figures.items()
                for how in ("separate", "together")
            ),
        ]
        for name, of in load("together")["sets"].items()
    ]
    heads = ["a step of all", "operators, separate", "together", "an evaluation's, separate", "together"]
    return table([*heads, "processor ms a step, separate", "together"], rows)


def finetuning_epoch() -> str:
    """Steps with and without the cache, cut by cut."""
    rows = [
        [
            f"`{cut['cut']}`",
            f"{100 * cut['work_frozen']:.0f} %",
            f"{cut['cached_milliseconds_an_image']:.2f}",
            f"{cut['whole_network_milliseconds_an_image']:.2f} ({cut['times_faster']:.1f} times)",
            f"{cut['whole_network_decoded_milliseconds_an_image']:.2f} ({cut['times_faster_than_decoded']:.1f} times)",
        ]
        for cut in load("finetuning_epoch")["cuts"]
    ]
    head = [
        "cut",
        "work frozen",
        "cached, ms an image",
        "whole network, from files",
        "whole network, from memory",
    ]
    return table(head, rows)


def finetuning_accuracy() -> str:
    """Linear head and fine-tuned network, each from an empty cache."""
    values = load("finetuning_accuracy")
    rows = []
    for name in ("linear", "fine-tuned"):
        found = values[name]
        validation = "–"
        if found["fine_tuning"]:
            start, kept = found["fine_tuning"][0]["start"], found["fine_tuning"][-1]["kept"]
            validation = f"{100 * start['accuracy']:.1f} → {100 * kept['accuracy']:.1f} % of {kept['n']}"
        rows.append([name, f"{found['seconds']:.0f}", validation, percent(found["test"])])
    return table(["clothing photos", "seconds from nothing", "validation", "test accuracy (95 % interval)"], rows)


def finetuning_curves() -> str:
    """Accuracy by number of images and by cut."""
    runs = load("finetuning_curves")["runs"]
    cuts = list(dict.fromkeys(run["cut"] for run in runs))
    rows = []
    for images in dict.fromkeys(run["images"] for run in runs):
        found = {run["cut"]: run["accuracy"] for run in runs if run["images"] == images}
        rows.append([f"{images:,}", *(f"{100 * found[cut]:.1f} %" for cut in cuts)])
    return table(["training images", *(f"`{cut}`" for cut in cuts)], rows)


def finetuning_keras() -> str:
    """The same fine-tuning job beside Keras's own guide."""
    values = load("finetuning_keras")
    keras, ours = values["keras"], values["quickstudy"]
    top = next(epoch for epoch in reversed(keras["epochs"]) if epoch["stage"] == "top")
    rows = [
        ["Keras on TensorFlow: top alone", f"{top['seconds']:.0f}", f"{100 * top['validation_accuracy']:.1f} %", "–"],
        [
            "Keras on TensorFlow: and then unfrozen after `mixed7`",
            f"{keras['seconds']:.0f}",
            f"{100 * keras['epochs'][-1]['validation_accuracy']:.1f} %",
            f"{100 * keras['test']['accuracy']:.1f} %",
        ],
        [
            "quickstudy, linear head",
            f"{ours['linear']['seconds']:.0f}",
            "–",
            f"{100 * ours['linear']['test']['accuracy']:.1f} %",
        ],
        [
            "quickstudy, fine-tuned after `mixed7`",
            f"{ours['fine-tuned']['seconds']:.0f}",
            f"{100 * ours['fine-tuned']['fine_tuning'][-1]['kept']['accuracy']:.1f} %",
            f"{100 * ours['fine-tuned']['test']['accuracy']:.1f} %",
        ],
    ]
    note = f"\n{values['images']} photos to train on; {values['times_less']:.1f} times less wall time to fine-tune.\n"
    return table(["", "seconds from nothing", "validation", "test accuracy"], rows) + note


def serving() -> str:
    """The server under load."""
    values = load("serving")
    through, over = values["throughput"], values["overload"]
    memory, after = over["memory_megabytes"], over["afterwards"]
    counts = over["statuses"]
    good, refused, in_all = counts.get("200", 0), counts.get("503", 0), sum(counts.values())
    latencies = [
        [
            f"{share} % of capacity ({row['rate']:.0f} requests/s)",
            *(f"{row['milliseconds'][name]:.0f}" for name in ("p50", "p90", "p99")),
            f"{row['statuses'].get('503', 0):,} of {sum(row['statuses'].values()):,}",
        ]
        for share, row in values["latency"].items()
    ]
    overload = [
        f"{over['rate']:.0f} requests/s for {over['seconds']:.0f} s",
        f"{good:,} / {refused:,} / {in_all - good - refused:,}",
        ranged(over["answered_each_second"], 0),
        f"{over['milliseconds']['p50']:.0f} / {over['milliseconds']['p99']:.0f}",
        f"{memory['before']:.0f} / {memory['largest']:.0f}",
        f"{after['milliseconds']['p50']:.0f}",
    ]
    return "\n".join(
        (
            table(
                ["", "images/s", "share of bare"],
                [
                    ["bare loop: decode, run", ranged(through["bare"]), ""],
                    ["**quickstudy serve**", ranged(through["server"]), shares(through["share_of_bare"])],
                    [
                        "the client's cores left out of the count",
                        f"client: {ranged(through['client_cores'], 2)} cores",
                        shares(through["share_of_bare_without_client"]),
                    ],
                ],
            ),
            table(["", "p50 ms", "p90 ms", "p99 ms", "503"], latencies),
            table(
                [
                    "three times the capacity",
                    "200 / 503 / other",
                    "200 each second",
                    "p50 / p99 ms",
                    "MB before / most",
                    "p50 ms right after",
                ],
                [overload],
            ),
            table(
                ["the model alone", "images/s"], [[name, f"{rate:.0f}"] for name, rate in values["batching"].items()]
            ),
        )
    )


def serving_peers() -> str:
    """Other servers."""
    values = load("serving_peers")
    names = {
        "quickstudy": "**quickstudy serve**",
        "fastapi_keras": "FastAPI, Keras on TensorFlow",
        "litserve": "LitServe",
    }
    rows = [
        [
            names[side],
            ranged(rates),
            ranged(values["milliseconds_p99"][side], 0),
            ranged(values["ratio"][side], 2) if side in values["ratio"] else "",
        ]
        for side, rates in values["images_per_second"].items()
    ]
    return table([values["network"], "images/s", "p99 ms", "quickstudy is so many times faster"], rows)


def shares(values: dict[str, float]) -> str:
    """A ratio in percent, with smallest and largest."""
    return ranged(values, 1, scale=100) + " %"


def census() -> str:
    """Seconds of a census, cold and warm."""
    values = load("census")
    cold, warm = values["cold"], values["warm"]
    rows = [
        ["listing", f"{cold['listing']:.2f}", ranged(warm["listing"], 2)],
        ["hashes, or what is known of them", f"{cold['identifying']:.2f}", ranged(warm["identifying"], 2)],
        ["a census of what was listed, hashes included", "", ranged(warm["bringing together"], 2)],
        ["**in all**", "", ranged(values["warm_seconds"], 2)],
    ]
    header = [f"{values['files']:,} files of {values['kilobytes']} KiB", "seconds, cold", "warm"]
    alone = f"\nHashing alone, on one core: {values['hashing_alone_on_one_core_seconds']:.2f} s.\n"
    return table(header, rows) + alone


def optimum() -> str:
    """The head's held-out figures beside scikit-learn's."""
    rows = [
        [
            f"{row['classes']} classes, {row['images']:,} images",
            f"{row['l2']:g}",
            f"{row['log_loss']:.4f}",
            f"{row['log_loss_scikit_learn']:.4f}",
            f"{row['right']:,}",
            f"{row['right_scikit_learn']:,}",
            f"{row['largest_difference_of_a_probability']:.0e}",
            f"{row['seconds']:.2f}",
            f"{row['seconds_scikit_learn']:.1f}",
        ]
        for row in load("optimum")["rows"]
    ]
    header = ["bottlenecks", "strength", "log loss", "scikit-learn", "right", "scikit-learn", "probabilities differ by"]
    return table([*header, "seconds", "scikit-learn"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "extraction": extraction,
    "engines": engines,
    "engine_speeds": engine_speeds,
    "keras": keras,
    "warm": warm,
    "growth": growth,
    "memory": memory,
    "accuracy": accuracy,
    "views": views,
    "optimum": optimum,
    "census": census,
    "faults": faults,
    "training_step": training_step,
    "training_race": training_race,
    "training_parts": training_parts,
    "training_devices": training_devices,
    "sweep": sweep,
    "together": together,
    "finetuning_epoch": finetuning_epoch,
    "finetuning_accuracy": finetuning_accuracy,
    "finetuning_curves": finetuning_curves,
    "finetuning_keras": finetuning_keras,
    "serving": serving,
    "serving_peers": serving_peers,
    **CHOICE_TABLES,
    **LABEL_TABLES,
    **TRUST_TABLES,
}

if __name__ == "__main__":
    main()
