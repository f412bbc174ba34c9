"""Planning as a part of the main job: what these images and this machine allow in a given time.

Needs torch, like fine-tuning itself; imported where a budget is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from quickstudy.backbones.backbone import Backbone
from quickstudy.cores import usable_cores
from quickstudy.errors import UnusableImageError
from quickstudy.finetuning.costs import measure_costs
from quickstudy.finetuning.planner import Job, Plan, choose_plan
from quickstudy.images.census import Census
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import render_view
from quickstudy.retraining.config import RetrainConfig

_SAMPLE = 32


def plan_for(
    census: Census,
    net: Backbone,
    config: RetrainConfig,
) -> Plan:
    """The cut, views and epochs that fit a time, which includes the seconds that planning itself takes.

    Args:
        census: the images in their roles.
        net: the backbone, with all its cuts.
        config: how long all may take, how much the store may grow, and how it will be trained.

    Raises:
        PlanError: nothing fits.
    """
    started = time.perf_counter()
    costs = measure_costs(net, batch=config.method.batch)
    decode_seconds = _decode_seconds([census.contents[digest].path for digest in census.labels], net.input)
    job = Job(
        images=len(census.labels),
        learned=len(census.digests("train")),
        compared=len(census.digests("validation")),
        decode_seconds=decode_seconds,
        bytes_a_value=np.dtype(config.dtype).itemsize,
        spent_seconds=time.perf_counter() - started,
    )
    return choose_plan(costs, job, seconds=config.budget_seconds or math.inf, disk_bytes=config.disk_bytes)


def _decode_seconds(paths: Sequence[Path], spec: InputSpec) -> float:
    """For one image, on the whole machine: reading, decoding and resizing, as a median of a sample."""
    sample = paths[:: max(1, len(paths) // _SAMPLE)][:_SAMPLE]

    def carry(path: Path) -> None:
        try:
            data, digest = read_image_file(path)
            render_view(decode(data, spec), spec, digest, 1, Distortions())
        except UnusableImageError:
            pass

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(carry, sample))  # the first time, files come from the disk
        started = time.perf_counter()
        list(pool.map(carry, sample))
    return (time.perf_counter() - started) / max(len(sample), 1)
