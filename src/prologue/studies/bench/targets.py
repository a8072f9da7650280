"""What sampling has to reach, and whether a measurement does."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, bool]
"""Batch, and whether it is guided."""

BEST = "best"
"""Stands for the fastest precision of a CPU."""

RATIOS: dict[tuple[str, str], dict[Shape, float]] = {
    ("cpu", BEST): {(1, True): 6.0, (16, True): 4.0, (32, False): 4.0},
    ("cpu", "fp32"): {(1, True): 2.5, (16, True): 1.5, (32, False): 1.3},
    ("cuda", "bf16"): {(1, True): 15.0, (16, True): 10.0, (32, False): 5.0},
}
"""Times faster than the baseline, decoder included, by device type and precision: prior b, base tokenizer."""

LIMIT_SHARE = 0.70
"""Part of the machine's limit that counts as reached where the ratio is not."""

XL_LIMIT_SHARE = 0.60
"""Part of the memory bandwidth that prior xl has to reach on a GPU at batch 1."""

FEW_ROWS = 4
"""Rows up to which a step waits for memory rather than for products."""


@dataclass(frozen=True)
class Target:
    """Reached by the ratio, where there is one, or by the share of the limit."""

    ratio: float | None
    limit_share: float

    def reached(self, ratio: float | None, limit_share: float) -> bool | None:
        """None while it depends on a ratio that is not measured yet."""
        if limit_share >= self.limit_share:
            return True
        if self.ratio is None:
            return False
        return None if ratio is None else ratio >= self.ratio


def target(prior: str, tokenizer: str, device_type: str, precision: str, shape: Shape) -> Target | None:
    """What is asked of a precision (or of `BEST`) at this batch; None where nothing is.

    On a CPU each precision but fp32 is held against the target of the best one.
    """
    if prior == "xl" and device_type == "cuda" and shape[0] == 1:
        return Target(None, XL_LIMIT_SHARE)
    if (prior, tokenizer) != ("b", "base"):
        return None
    name = BEST if device_type == "cpu" and precision != "fp32" else precision
    ratio = RATIOS.get((device_type, name), {}).get(shape)
    return None if ratio is None else Target(ratio, LIMIT_SHARE)
