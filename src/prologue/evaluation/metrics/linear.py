"""A multinomial logistic regression: standardised inputs, L2 chosen on held-out rows, fitted by L-BFGS in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.utils.rng import torch_stream

STRENGTHS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""L2 strengths that are tried: `strength / 2 · |W|²` beside the mean cross-entropy; the bias is free."""
_HELD_OUT = 0.2
_ROUNDS = 200
_FLAT = 1e-5
"""A largest gradient below this ends a fit: the mean cross-entropy is then known to far more digits than its sample."""


@dataclass(frozen=True)
class Standardiser:
    """Mean 0 and deviation 1 of each input over the rows it was made from; inputs that never vary become 0."""

    mean: Float64[Tensor, " d"]
    scale: Float64[Tensor, " d"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> Self:
        wide = x.double()
        deviation = wide.std(0, correction=0)
        varies = deviation > 1e-9 * wide.abs().amax(0).clamp_min(1.0)
        return cls(wide.mean(0), torch.where(varies, 1 / deviation.clamp_min(1e-300), torch.zeros_like(deviation)))

    def __call__(self, x: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
        return (x.double() - self.mean) * self.scale


@dataclass(frozen=True)
class LinearClassifier:
    """Scores of each class, linear in standardised inputs."""

    standardise: Standardiser
    weight: Float64[Tensor, "d c"]
    bias: Float64[Tensor, " c"]
    l2: float

    def __call__(self, x: Float[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
        return self.standardise(x) @ self.weight + self.bias

    def scores(self, x: Float[Tensor, "n d"], rows: int = 4096) -> Float64[Tensor, "n c"]:
        """The scores of many inputs, `rows` at a time."""
        return torch.cat([self(part) for part in torch.split(x, rows)])


def fit_linear(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    classes: int,
    *,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearClassifier:
    """Fit on all rows, with the L2 strength whose fit to four fifths of them has the least cross-entropy on the rest.

    Strengths are tried from the strongest on, until that cross-entropy rises; with one, nothing is chosen. Fitted on
    the device of `x`. Raises `EvaluationError` for inputs that are not finite, for labels outside `0…classes−1`, and
    for fewer than 5 rows.
    """
    _check(x, y, classes)
    y = y.to(x.device)
    l2 = strengths[0] if len(strengths) == 1 else _choose(x, y, classes, seed, strengths)
    standardise = Standardiser.of(x)
    weight, bias = _descend(standardise(x), y, l2, *_nothing(standardise.mean, classes))
    return LinearClassifier(standardise, weight, bias, l2)


def _choose(x: Tensor, y: Tensor, classes: int, seed: int, strengths: Sequence[float]) -> float:
    """From the strongest on, each fit starting where the last one ended, until the cross-entropy rises."""
    order = torch.randperm(len(x), generator=torch_stream(seed, "evaluation", "probe held-out")).to(x.device)
    cut = max(1, round(_HELD_OUT * len(x)))
    held, kept = order[:cut], order[cut:]
    standardise = Standardiser.of(x[kept])
    inside, outside = standardise(x[kept]), standardise(x[held])
    weight, bias = _nothing(standardise.mean, classes)
    best, least = strengths[0], float("inf")
    for l2 in sorted(strengths, reverse=True):
        weight, bias = _descend(inside, y[kept], l2, weight, bias)
        paid = float(F.cross_entropy(outside @ weight + bias, y[held]))
        if paid >= least:
            break
        best, least = l2, paid
    return best


def _nothing(inputs: Float64[Tensor, " d"], classes: int) -> tuple[Tensor, Tensor]:
    return inputs.new_zeros(len(inputs), classes), inputs.new_zeros(classes)


def _descend(x: Tensor, y: Tensor, l2: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy plus `l2 / 2 · |W|²`, from a start."""
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_ROUNDS,
            tolerance_grad=_FLAT,
            tolerance_change=1e-12,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            w, b = parameters
            loss: Tensor = F.cross_entropy(x @ w + b, y) + 0.5 * l2 * w.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters[0].detach(), parameters[1].detach()


def _check(x: Tensor, y: Tensor, classes: int) -> None:
    if x.ndim != 2 or len(x) != len(y) or len(x) < 5:
        raise EvaluationError(
            f"a linear classifier needs at least 5 rows with a label each, not {tuple(x.shape)} and {len(y)} labels"
        )
    if not bool(torch.isfinite(x).all()):
        raise EvaluationError("a linear classifier needs finite inputs, and some of these are not")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise EvaluationError(f"labels must lie in 0…{classes - 1}, not {int(y.min())}…{int(y.max())}")
