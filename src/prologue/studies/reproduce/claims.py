"""The claims of the paper. Each is judged over the seeds that both of its variants have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from prologue.evaluation.distances import INDICATIVE
from prologue.studies.reproduce.pieces import Piece, Result
from prologue.studies.reproduce.recipes import at_end
from prologue.studies.reproduce.scales import Name
from prologue.studies.reproduce.verdicts import Estimate, Outcome, Verdict, both, judge, log_ratio

Results = Mapping[Piece, Result]
Pairs = Mapping[int, tuple[Result, Result]]
"""Results of two variants by seed."""
FACTOR = 1.5
"""The least factor by which unguided samples are closer with a prologue."""
WORSE = 1.05
"""The largest ratio of the distances of reconstructions."""
PROBE = 1.3
"""The least ratio of the probes of prologue and visual tokens."""
LAYOUT = 0.9
"""The largest ratio of distances within a prologue and between prologues."""


@dataclass(frozen=True)
class Claim:
    """A claim about one variant against another, with its verdict. `verdict` is None if no seed can be compared."""

    key: str
    ours: Name
    theirs: Name | None
    short: str
    """The claim in a few words, without the variant."""
    text: str
    measure: str
    """The measure of the values."""
    logarithmic: bool
    """Whether the values are logarithms of ratios. They are shown as ratios. Other values are differences."""
    by_seed: dict[int, float]
    verdict: Verdict | None
    notes: tuple[str, ...] = ()

    @classmethod
    def judged(
        cls,
        key: str,
        ours: Name,
        theirs: Name | None,
        short: str,
        text: str,
        measure: str,
        values: Mapping[int, float | None],
        threshold: float,
        missing: str,
        *,
        logarithmic: bool = True,
        at_most: bool = False,
        notes: Sequence[str] = (),
    ) -> Self:
        """The claim with its verdict over the seeds that have a value. Each other seed gets the note `missing`."""
        by_seed = {seed: value for seed, value in values.items() if value is not None}
        limit = math.log(threshold) if logarithmic else threshold
        verdict = judge(list(by_seed.values()), limit, at_most=at_most) if by_seed else None
        lacking = [f"seed {seed} {missing}" for seed in values if seed not in by_seed]
        return cls(
            key, ours, theirs, short, text, measure, logarithmic, by_seed, verdict, (*lacking, *notes)
        )  # fmt: skip

    @property
    def outcome(self) -> Outcome:
        return "undecided" if self.verdict is None else self.verdict.outcome

    def shown(self, value: float) -> float:
        """A value as it is shown: the exponential of a logarithm."""
        return math.exp(value) if self.logarithmic else value

    def record(self) -> dict[str, Any]:
        """The claim as JSON values."""
        out: dict[str, Any] = {"key": self.key, "ours": self.ours, "theirs": self.theirs, "claim": self.text}
        out |= {"measure": self.measure, "unit": "ratio" if self.logarithmic else "difference"}
        out |= {"outcome": self.outcome, "seeds": sorted(self.by_seed), "notes": list(self.notes)}
        out["by_seed"] = {str(seed): self.shown(value) for seed, value in sorted(self.by_seed.items())}
        if self.verdict is not None:
            found = self.verdict.estimate
            ends = {"value": found.mean, "low": found.low, "high": found.high, "threshold": self.verdict.threshold}
            out |= {key: None if value is None else self.shown(value) for key, value in ends.items()}
            out |= {"at_most": self.verdict.at_most, "seeds_needed": self.verdict.needed}
        return out


def figure(result: Result, path: str) -> float | None:
    """A measured figure by its dotted path, such as `unguided.kid`, or None."""
    value = _at(result, path)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def text_figure(result: Result, path: str) -> str | None:
    """A measured text by its dotted path, or None."""
    value = _at(result, path)
    return value if isinstance(value, str) else None


def _at(result: Result, path: str) -> Any:
    value: Any = result["measures"]
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def pairs(results: Results, ours: Name, theirs: Name) -> Pairs:
    """The results of both variants by seed, for the seeds that both have."""
    seeds = sorted({piece.seed for piece in results})
    both_there = [seed for seed in seeds if Piece(seed, ours) in results and Piece(seed, theirs) in results]
    return {seed: (results[Piece(seed, ours)], results[Piece(seed, theirs)]) for seed in both_there}


def judge_claims(results: Results) -> list[Claim]:
    """All claims about the variants with results."""
    there = {piece.variant for piece in results}
    claims: list[Claim] = []
    for ours in (name for name in ("prologue", "prologue-post") if name in there):
        if "2d" in there:
            claims += [closer(results, ours, "2d", FACTOR), closer(results, ours, "2d", 1.0)]
        if "2d" in there and ours == "prologue":
            claims.append(reconstructs(results, ours, "2d"))  # prologue-post has the visual tokens of its 2d
        claims += [probes(results, ours, theirs) for theirs in ("1d", "2d") if theirs in there]
        claims.append(fixes_layout(results, ours))
    return claims


def headline(claims: list[Claim], ours: Name = "prologue") -> Outcome | None:
    """The verdict on the effect of the paper: closer samples at equal reconstruction. None without both claims."""
    parts = [claim.outcome for claim in claims if claim.ours == ours and claim.key in ("closer-1.5", "reconstruction")]
    return both(parts) if len(parts) == 2 else None


def closer(results: Results, ours: Name, theirs: Name, factor: float) -> Claim:
    """Unguided samples are at least `factor` times closer to the training images.

    With 10,000 images on both sides, the Fréchet distance decides. With fewer images it depends on their number. Then
    the kernel distance decides, by the paired difference theirs − factor · ours, since ratios near 0 mean nothing.
    """
    paired = pairs(results, ours, theirs)
    few = _least(paired, "unguided.n", "unguided.n_reference") < INDICATIVE
    which = "kid" if few else "fd"
    name = _name_of(paired, f"unguided.{which}_name", which.upper())
    values: dict[int, float | None] = {}
    for seed, (a, b) in paired.items():
        mine, other = figure(a, f"unguided.{which}"), figure(b, f"unguided.{which}")
        difference = None if mine is None or other is None else other - factor * mine
        values[seed] = difference if few else log_ratio(other, mine)
    much, times = (f"at least {factor:g} times closer", f"{factor:g} times ") if factor != 1 else ("closer", "")
    compared = f"{theirs} − {'' if factor == 1 else f'{factor:g} × '}{ours}" if few else f"{theirs} / {ours}"
    return Claim.judged(
        f"closer-{factor:g}",
        ours,
        theirs,
        f"unguided samples {times}closer than {theirs}",
        f"unguided samples are {much} to the training images ({name}) with {ours} than with {theirs}",
        f"{name}, {compared}",
        values,
        0.0 if few else factor,
        "lacks a kernel distance of unguided samples" if few else "has no ratio of this figure",
        logarithmic=not few,
        notes=_ends(paired, (ours, theirs)),
    )


def _ends(paired: Pairs, names: tuple[Name, Name]) -> list[str]:
    """Notes on recipes at an end of the sweep. Recipes beyond it might be better."""
    found = {
        name: [seed for seed, pair in paired.items() if at_end(pair[side], "unguided")]
        for side, name in enumerate(names)
    }
    return [
        f"the temperature that {name} chose is at an end of the sweep for {_seeds(seeds)}"
        for name, seeds in found.items()
        if seeds
    ]


def reconstructs(results: Results, ours: Name, theirs: Name) -> Claim:
    """The Fréchet distance of reconstructions is at most 5 % larger.

    Both variants decode the same images, so the number of images affects both distances equally. A small number moves
    the ratio towards 1. A kernel distance does not apply, since an image and its reconstruction are not independent.
    """
    paired = pairs(results, ours, theirs)
    fewest, name = _least(paired, "reconstruction.n"), _name_of(paired, "reconstruction.fd_name", "FD")
    values = {seed: log_ratio(*(figure(side, "reconstruction.fd") for side in pair)) for seed, pair in paired.items()}
    worse = f"{100 * (WORSE - 1):.0f} %"
    notes = []
    if fewest < INDICATIVE and any(value is not None for value in values.values()):
        notes = [f"the ratio of distances of only {fewest:.0f} reconstructions is nearer to 1 than that of many"]
    return Claim.judged(
        "reconstruction",
        ours,
        theirs,
        f"reconstructions at most {worse} worse than {theirs}",
        f"reconstructions are at most {worse} farther from the images (r{name}) with {ours} than with {theirs}",
        f"r{name}, {ours} / {theirs}",
        values,
        WORSE,
        "has no ratio of this figure",
        at_most=True,
        notes=notes,
    )


def probes(results: Results, ours: Name, theirs: Name) -> Claim:
    """The class is predicted from prologue tokens at least 1.3 times as often as from the first visual tokens."""
    paired = pairs(results, ours, theirs)
    probed = {f"the prologue of {ours}": (0, "prologue"), f"the first visual tokens of {theirs}": (1, "visual_first")}
    notes = []
    for what, (side, name) in probed.items():
        low = {seed: figure(pair[side], f"probe.{name}_low") or 0.0 for seed, pair in paired.items()}
        chance = {seed: figure(pair[side], "probe.chance") or 0.0 for seed, pair in paired.items()}
        at_chance = [seed for seed in paired if low[seed] <= chance[seed]]
        if at_chance:
            notes.append(f"the probe of {what} is not above chance for {_seeds(at_chance)}")
    return Claim.judged(
        f"probe-{theirs}",
        ours,
        theirs,
        f"probe {PROBE:g} times as good as that of {theirs}",
        f"a linear probe names the class at least {PROBE:g} times as often from the prologue tokens of {ours} as from "
        f"as many first visual tokens of {theirs}",
        f"top-1 of the probe, {ours} / {theirs}",
        {
            seed: log_ratio(figure(a, "probe.prologue"), figure(b, "probe.visual_first"))
            for seed, (a, b) in paired.items()
        },
        PROBE,
        "has no ratio of probes",
        notes=notes,
    )


def fixes_layout(results: Results, ours: Name) -> Claim:
    """Images of one prologue are clearly nearer to each other than images of different prologues of one class."""
    own = {piece.seed: result for piece, result in results.items() if piece.variant == ours}
    collapsed = [seed for seed, result in own.items() if result["measures"].get("likelihood", {}).get("collapsed")]
    return Claim.judged(
        "layout",
        ours,
        None,
        "images of one prologue clearly nearer to each other",
        f"images drawn from one prologue of {ours} are clearly nearer to each other (at most {LAYOUT:g} times as far, "
        "in coarse pixels) than those of different prologues of one class",
        "within / between",
        {seed: log_ratio(figure(result, "layout.coarse_ratio"), 1.0) for seed, result in own.items()},
        LAYOUT,
        "has no ratio of layouts",
        at_most=True,
        notes=[f"the prologue of seed {seed} has collapsed" for seed in collapsed],
    )


def _least(paired: Pairs, *paths: str) -> float:
    """The smallest of these figures on either side."""
    return min((figure(side, path) or 0.0 for pair in paired.values() for side in pair for path in paths), default=0.0)


def _name_of(paired: Pairs, path: str, default: str) -> str:
    """The name of a measure."""
    names = (text_figure(side, path) for pair in paired.values() for side in pair)
    return next((name for name in names if name), default)


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def interval_text(claim: Claim, found: Estimate) -> str:
    """`1.21 (1.02 to 1.44)`, or the value without an interval."""
    value = f"{claim.shown(found.mean):.3g}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({claim.shown(found.low):.3g} to {claim.shown(found.high):.3g})"


def sentence(claim: Claim) -> str:
    """The verdict on a claim as a sentence."""
    verdict = claim.verdict
    if verdict is None:
        return f"Undecided, because no seed can be compared: {claim.text}."
    n = verdict.estimate.n
    seeds = f"{n} seed" if n == 1 else f"{n} seeds"
    limit = f"{'at most' if verdict.at_most else 'at least'} {claim.shown(verdict.threshold):.3g}"
    found = f"Found {interval_text(claim, verdict.estimate)} ({claim.measure}), claimed {limit}"
    out = f"{verdict.outcome.capitalize()} over {seeds}: {claim.text}. {found}."
    if verdict.outcome != "undecided":
        return out
    if n < 2:
        return f"{out} One seed has no interval and decides nothing."
    if verdict.needed is None:
        return f"{out} Even very many seeds would hardly decide it."
    return f"{out} About {verdict.needed} seeds would decide it with the same mean and deviation."
