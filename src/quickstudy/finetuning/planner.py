"""The planner: which cut, how many views and epochs fit a time, from what each cut costs on this machine.

Deeper is better as long as it fits, so the deepest cut that leaves room for a short fine-tuning is taken; what time is
left then goes into epochs, up to the usual number, then into views, which need epochs to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quickstudy.errors import PlanError
from quickstudy.finetuning.costs import CutCost

_FEWEST_EPOCHS = 6
_EPOCHS = 12
_MOST_EPOCHS = 20
_MOST_VIEWS = 4
# Starting, splitting, fitting the linear head, writing the model: measured on a few thousand images.
_OTHER_SECONDS = 6.0
_SAFETY = 0.9
"""Share of the budget that is planned with: a prediction is off by some percent either way."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What there is to do."""

    images: int
    """In all; each passes through the prefix."""
    learned: int
    """Of these, to train on."""
    compared: int
    """Of these, to validate on after each epoch."""
    decode_seconds: float = 0.0
    """For one image, on the whole machine: reading, decoding, resizing."""
    bytes_a_value: int = 2
    spent_seconds: float = 0.0
    """Before, on finding out the above."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done, and what it is expected to take."""

    cost: CutCost
    views: int
    epochs: int
    fill_seconds: float
    """Computing all bottlenecks at the cut, where the store has none yet."""
    epoch_seconds: float
    other_seconds: float
    """Planning, starting, the linear head, writing the model."""
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """In all."""
        return self.other_seconds + self.fill_seconds + (self.epochs + 1) * self.epoch_seconds

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "cut": self.cost.cut.name,
            "views": self.views,
            "epochs": self.epochs,
            "fill_seconds": self.fill_seconds,
            "epoch_seconds": self.epoch_seconds,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds,
        }


def predict(cost: CutCost, job: Job, *, views: int, epochs: int) -> Plan:
    """What fine-tuning from a cut takes."""
    renderings = job.images * (views + 1)
    return Plan(
        cost=cost,
        views=views,
        epochs=epochs,
        fill_seconds=renderings * (cost.prefix_seconds + job.decode_seconds),
        epoch_seconds=job.learned * cost.training_seconds + job.compared * cost.evaluation_seconds,
        other_seconds=_OTHER_SECONDS + job.spent_seconds,
        disk_bytes=renderings * cost.cut.values * job.bytes_a_value,
    )


def choose_plan(costs: Sequence[CutCost], job: Job, *, seconds: float, disk_bytes: float | None = None) -> Plan:
    """The deepest cut, and then the epochs and views, that fit.

    Args:
        costs: what each cut costs, from the image on.
        job: what there is to do.
        seconds: how long it may take.
        disk_bytes: how much the store may grow; any amount if left out.

    Raises:
        PlanError: nothing fits.
    """

    def fits(plan: Plan) -> bool:
        return plan.seconds <= _SAFETY * seconds and (disk_bytes is None or plan.disk_bytes <= disk_bytes)

    trainable = [cost for cost in costs if cost.trainable]
    quickest = [predict(cost, job, views=1, epochs=_FEWEST_EPOCHS) for cost in trainable]
    plan = next((plan for plan in quickest if fits(plan)), None)
    if plan is None:
        least = min(quickest, key=lambda plan: plan.seconds, default=None)
        allowed = f"{seconds:.0f} s" + (f" and {disk_bytes / 1e9:.2f} GB" if disk_bytes is not None else "")
        needed = f"; '{least.cost.cut.name}' would take {least.seconds / _SAFETY:.0f} s" if least is not None else ""
        needed += f" and {least.disk_bytes / 1e9:.2f} GB" if least is not None and disk_bytes is not None else ""
        raise PlanError(
            f"No fine-tuning fits {allowed}{needed}. Allow more, or leave out --budget to train the linear head alone"
        )
    for most_epochs, most_views in ((_EPOCHS, 1), (_EPOCHS, _MOST_VIEWS), (_MOST_EPOCHS, _MOST_VIEWS)):
        while plan.views < most_views and fits(more := _with(plan, job, views=plan.views + 1)):
            plan = more
        while plan.epochs < most_epochs and fits(more := _with(plan, job, epochs=plan.epochs + 1)):
            plan = more
    return plan


def _with(plan: Plan, job: Job, *, views: int | None = None, epochs: int | None = None) -> Plan:
    return predict(plan.cost, job, views=views or plan.views, epochs=epochs or plan.epochs)
