"""Inception Score: confidence of a classifier in each sample, and diversity of its predictions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import NORMAL_95, Interval

LEAST = 2
SPLIT = 5000
"""Samples per estimate of published scores; fewer samples score lower."""


def inception_score(logits: Float[Tensor, "n classes"], split_size: int = SPLIT) -> Interval:
    """`exp` of the mean `KL(p(y|x) || p(y))` over samples, averaged over splits of at least `split_size` samples.

    Computed in float64. The 95 % interval (delta method over samples) is that of the score at this number of samples;
    it does not include the bias against more samples. Fewer than two samples, and logits that are not finite, are an
    `EvaluationError`.
    """
    if logits.ndim != 2 or len(logits) < LEAST:
        raise EvaluationError(f"an Inception Score needs at least {LEAST} samples, not {len(logits)}")
    if not bool(logits.isfinite().all()):
        raise EvaluationError("the logits hold NaN or infinity: the images or the model's weights are broken")
    values, variances = [], []
    for part in logits.tensor_split(max(1, len(logits) // split_size)):
        log_p = part.double().log_softmax(1)
        p = log_p.exp()
        # A class that is never predicted has p = 0, and 0 · log 0 is 0.
        marginal = p.mean(0)
        log_marginal = marginal.clamp_min(torch.finfo(torch.float64).tiny).log()
        divergence = (p * (log_p - log_marginal)).sum(1)
        value = float(divergence.mean().exp())
        values.append(value)
        variances.append(value**2 * float(divergence.var()) / len(part))
    score = sum(values) / len(values)
    reach = NORMAL_95 * sum(variances) ** 0.5 / len(values)
    return Interval(score, score - reach, score + reach)
