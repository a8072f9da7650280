"""Inception Score: how sure a classifier is of each sample, and how many classes it sees in all of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from prologue.errors import EvaluationError
from prologue.evaluation.metrics.intervals import NORMAL_95, Interval

LEAST = 2
SPLIT = 5000
"""Samples of one estimate, as published scores take them: fewer samples score lower."""


def inception_score(logits: Float[Tensor, "n classes"], split_size: int = SPLIT) -> Interval:
    """`exp` of the mean `KL(p(y|x) || p(y))` over samples, averaged over as many whole splits as there are.

    Softmax and sums in float64. With fewer than two splits of samples, all are one. The 95 % interval is that of the
    delta method over samples: it says how well the score at this number of samples is known, not how far it lies
    below that of more samples. At least two samples, and finite logits, else an `EvaluationError`.
    """
    if logits.ndim != 2 or len(logits) < LEAST:
        raise EvaluationError(f"an Inception Score needs at least {LEAST} samples, not {len(logits)}")
    if not bool(logits.isfinite().all()):
        raise EvaluationError("the logits hold NaN or infinity: the images or the model's weights are broken")
    values, variances = [], []
    for part in logits.tensor_split(max(1, len(logits) // split_size)):
        log_p = part.double().log_softmax(1)
        p = log_p.exp()
        # Classes that are never seen have p = 0 in the mean, and 0 · log 0 is 0.
        marginal = p.mean(0)
        log_marginal = marginal.clamp_min(torch.finfo(torch.float64).tiny).log()
        divergence = (p * (log_p - log_marginal)).sum(1)
        value = float(divergence.mean().exp())
        values.append(value)
        variances.append(value**2 * float(divergence.var()) / len(part))
    score = sum(values) / len(values)
    reach = NORMAL_95 * sum(variances) ** 0.5 / len(values)
    return Interval(score, score - reach, score + reach)
