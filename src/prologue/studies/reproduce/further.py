"""One further seed, and where the others had predicted it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prologue.report.page import Table
from prologue.studies.reproduce.claims import Claim, Results
from prologue.studies.reproduce.figures import ALL, by_seed, cell_figures, variants_of
from prologue.studies.reproduce.pieces import Piece
from prologue.studies.reproduce.scales import Name
from prologue.studies.reproduce.verdicts import prediction

LEAST = 3
"""Seeds that a prediction is made from, at least."""


@dataclass(frozen=True)
class Further:
    """A figure, or a claim's value, of the further seed, and the 95 % prediction interval from the others."""

    of: str
    """The variant; of a claim, variant and claim."""
    what: str
    seed: int
    others: int
    found: float
    low: float
    high: float
    style: str = ".3g"

    @property
    def inside(self) -> bool:
        slack = 1e-9 * abs(self.found)  # what comes back from logarithms is rounded
        return self.low - slack <= self.found <= self.high + slack

    @property
    def predicted_text(self) -> str:
        return f"{format(self.low, self.style)} to {format(self.high, self.style)}"

    @property
    def found_text(self) -> str:
        return format(self.found, self.style)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"of": self.of, "what": self.what, "seed": self.seed, "others": self.others, "found": self.found,
                "low": self.low, "high": self.high, "inside": self.inside}  # fmt: skip


def further_seed(results: Results, variant: Name) -> int:
    """The variant's seed that was made last; of several made by one call, the highest."""

    def order(piece: Piece) -> tuple[str, int]:
        return str(results[piece]["provenance"].get("time", "")), piece.seed

    return max((piece for piece in results if piece.variant == variant), key=order).seed


def further_figures(results: Results) -> list[Further]:
    """Every figure of every variant that has enough seeds; what does not differ between the others predicts nothing."""
    out = []
    for name in variants_of(results):
        seed = further_seed(results, name)
        for shown in ALL:
            values = by_seed(results, name, shown)
            others = [value for other, value in values.items() if other != seed]
            if seed not in values or len(others) < LEAST or len(set(others)) < 2:
                continue
            cell = cell_figures(others, shown.logarithmic, shown.bounds)
            ends = (cell["one_further_seed_low"], cell["one_further_seed_high"])
            out.append(Further(name, shown.title(results), seed, len(others), values[seed], *ends, shown.style))
    return out


def further_claims(results: Results, claims: Sequence[Claim]) -> list[Further]:
    """The value of every claim that has enough seeds."""
    out = []
    for claim in claims:
        seed = further_seed(results, claim.ours)
        others = [value for other, value in claim.by_seed.items() if other != seed]
        ends = prediction(others) if len(others) >= LEAST else None
        if seed in claim.by_seed and ends is not None and len(set(others)) > 1:
            found, low, high = map(claim.shown, (claim.by_seed[seed], *ends))
            out.append(Further(f"{claim.ours}: {claim.short}", claim.measure, seed, len(others), found, low, high))
    return out


def further_table(results: Results, claims: Sequence[Claim]) -> Table:
    """A row for each variant, which counts its figures, and one for each claim."""
    rows = []
    figures = further_figures(results)
    for name in dict.fromkeys(each.of for each in figures):
        own = [each for each in figures if each.of == name]
        out = [f"{each.what}: {each.found_text}, predicted {each.predicted_text}" for each in own if not each.inside]
        count = sum(each.inside for each in own)
        seeds = f"{own[0].seed}, from {own[0].others} others"
        rows.append([name, seeds, "all figures", f"{count} of {len(own)} inside", "\n".join(out) or "none outside"])
    for each in further_claims(results, claims):
        inside = "inside" if each.inside else "outside"
        seeds = f"{each.seed}, from {each.others} others"
        rows.append([each.of, seeds, each.what, inside, f"{each.found_text}, predicted {each.predicted_text}"])
    caption = (
        "The seed that was made last, and the 95 % prediction intervals from the others alone. One figure in "
        "twenty lies outside by chance; figures of one run move together."
    )
    return Table(["of", "seed", "figure", "where it lies", "found"], rows, caption, labels=5)
