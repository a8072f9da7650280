"""The tables of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prologue.evaluation.nearest import CHANCE
from prologue.report.page import Table
from prologue.studies.reproduce.claims import Claim, Results, figure, interval_text, pairs
from prologue.studies.reproduce.figures import (
    ALL,
    CARRIED,
    GENERATION,
    INSIDE,
    MEMORISED,
    RECONSTRUCTION,
    Figure,
    by_seed,
    cell_figures,
    variants_of,
)
from prologue.studies.reproduce.pieces import Result
from prologue.studies.reproduce.recipes import EDGE, recipe_text
from prologue.studies.reproduce.scales import Name
from prologue.studies.reproduce.verdicts import estimate, log_ratio

_AVERAGED = (
    "Each cell is the mean over seeds with its 95 % t interval. "
    "Fréchet distances and ratios are averaged as logarithms."
)


def _cell(values: Sequence[float], shown: Figure, seeds: int) -> str:
    if not values:
        return "–"
    record = cell_figures(values, shown.logarithmic, shown.bounds)
    text = format(record["mean"], shown.style)
    if len(values) != seeds:
        text += f", {len(values)} seed{'s' if len(values) > 1 else ''}"
    if record["low"] is None or record["low"] == record["high"]:
        return text
    return f"{text} ({record['low']:{shown.style}} to {record['high']:{shown.style}})"


def make_tables(results: Results, claims: Sequence[Claim]) -> dict[str, Table]:
    """All tables with rows, by title."""
    tables = {
        "Claims": _claims_table(claims),
        "Budgets": _budgets(results),
        "Reconstruction": _figures_table(
            results,
            RECONSTRUCTION,
            f"Held-out images and their reconstructions. {_counts(results, 'reconstruction')} {_originals(results)}",
        ),
        "Generation": _figures_table(
            results,
            GENERATION,
            "Samples with uniform labels against training images. Each run has its own recipe, which was chosen among "
            f"the same few by samples against held-out images. {_counts(results, 'unguided')} "
            f"{_originals(results)}",
        ),
        "What the prologue carries": _figures_table(
            results,
            CARRIED,
            "Nats per image over held-out images. The gain is against a prior without a prologue on the same visual "
            "ids. The nats of all tokens do not compare across tokenizers. "
            f"{_counts(results, 'likelihood')} {_kept(results)}",
        ),
        "Inside the tokens": _figures_table(results, INSIDE, _counts(results, "probe")),
        "Memorisation": _memorisation(results),
        "Against 2d, seed by seed": _against(results, "2d"),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _counts(results: Results, name: str) -> str:
    """The numbers of measured and of reference images."""
    counts, against = (
        sorted({int(n) for result in results.values() if (n := figure(result, f"{name}.{key}")) is not None})
        for key in ("n", "n_reference")
    )
    if not counts:
        return ""
    reference = f" against {', '.join(map(str, against))}" if against else ""
    return f"N = {', '.join(map(str, counts))}{reference}."


def _originals(results: Results) -> str:
    """The rate at which the classifier recognises real images, an upper limit for samples."""
    rates = [rate for result in results.values() if (rate := figure(result, "recognition.originals_rate")) is not None]
    if not rates:
        return ""
    return f"The classifier recognises the class in {100 * sum(rates) / len(rates):.1f} % of the held-out images."


def _kept(results: Results) -> str:
    """The step of the measured priors, if the best one during training was kept."""
    kept = [(result["prior_kept_step"], result["prior_steps"]) for result in results.values() if _has_kept(result)]
    if not kept:
        return ""
    last = sum(step == steps for step, steps in kept)
    return (
        "The prior of stage 2 is the best one during training on up to 512 held-out images: in "
        f"{last} of {len(kept)} runs the last one."
    )


def _has_kept(result: Result) -> bool:
    return result.get("prior_kept_step") is not None


def _figures_table(results: Results, figures: Sequence[Figure], caption: str) -> Table:
    """A row for each variant. Columns without values are left out."""
    names = variants_of(results)
    columns = [shown for shown in figures if any(by_seed(results, name, shown) for name in names)]
    rows = []
    for name in names:
        values = [list(by_seed(results, name, shown).values()) for shown in columns]
        if any(values):
            seeds = sum(piece.variant == name for piece in results)
            cells = [_cell(each, shown, seeds) for each, shown in zip(values, columns, strict=True)]
            rows.append([name, *cells, str(seeds)])
    head = ["variant", *(shown.title(results) for shown in columns), "seeds"]
    return Table(head, rows if columns else [], f"{caption} {_AVERAGED}")


def _claims_table(claims: Sequence[Claim]) -> Table:
    rows = []
    for claim in claims:
        verdict = claim.verdict
        found = "–" if verdict is None else f"{interval_text(claim, verdict.estimate)}\n{claim.measure}"
        limit = "–"
        if verdict is not None:
            limit = f"{'≤' if verdict.at_most else '≥'} {claim.shown(verdict.threshold):.3g}"
        needed = "" if verdict is None or verdict.needed is None else f", {verdict.needed} would decide"
        seeds = f"{len(claim.by_seed)} seed{'' if len(claim.by_seed) == 1 else 's'}{needed}"
        rows.append([f"{claim.ours}: {claim.short}", f"{claim.outcome}\n{seeds}", found, limit])
    caption = (
        "Seeds are paired. A claim is confirmed if the 95 % interval is beyond its limit, refuted if the interval is "
        "on the other side, else undecided. Each claim is judged by itself, so one of many may be wrong by chance. "
        "The number of seeds that would decide a claim assumes the same mean and deviation, and then decides it about "
        "half the time. The level holds for a number of seeds that was fixed beforehand. Adding seeds until there is a "
        "verdict is wrong more often."
    )
    return Table(["claim", "verdict", "found", "claimed"], rows, caption, labels=2)


def _budgets(results: Results) -> Table:
    rows = []
    names = variants_of(results)
    shared = set.intersection(*({piece.seed for piece in results if piece.variant == name} for name in names))
    for name in names:
        own = [result for piece, result in results.items() if piece.variant == name]
        timed = [result for result in own if result["seed"] in shared] or own
        images, flops = own[0]["images"], own[0]["flops"]
        seconds = {key: sum(result["seconds"][key] for result in timed) / len(timed) for key in own[0]["seconds"]}
        extra = f"\n+ {images['taken_over']} by its 2d" if images["taken_over"] else ""
        parameters = " + ".join(f"{own[0]['parameters'][part] / 1e6:.2f}" for part in ("tokenizer", "prior"))
        rows.append(
            [
                name,
                f"{images['tokenizer']}{extra}",
                str(images["prior"]) if images["prior"] else "–\nprior of stage 1",
                parameters,
                f"{flops['tokenizer'] / 1e12:.3g} + {flops['prior'] / 1e12:.3g}",
                f"{seconds['tokenizer']:.0f} + {seconds['prior']:.0f}",
                f"{seconds['measuring']:.0f}",
                *(_recipes(own, kind) for kind in ("unguided", "guided")),
            ]
        )
    caption = (
        "All variants have the same images, batches, network sizes and sweep of recipes in each stage. FLOPs (matrix "
        "products) and seconds (mean over the seeds that all variants have) are the resulting costs. "
        "prologue-post has one more encoder; its costs exclude stage 1 of the 2d that it starts from. "
        "one-stage samples with the prior of stage 1, which has a quarter of the blocks. The costs exclude the prior "
        "that the gain of prologue is measured against, and the encoding of the images. "
        f"{EDGE} marks values at an end of the sweep."
        f"{_versions(results)}"
    )
    head = ["variant", "images, stage 1", "images, stage 2", "parameters, M", "TFLOPs", "seconds", "measuring, s",
            "unguided recipe", "guided recipe"]  # fmt: skip
    return Table(head, rows, caption)


def _versions(results: Results) -> str:
    """The versions of the package, if there are several."""
    versions = sorted({str(result["provenance"].get("prologue")) for result in results.values()})
    return f" Made by several versions of the package: {', '.join(versions)}." if len(versions) > 1 else ""


def _recipes(results: Sequence[Result], kind: str) -> str:
    return "; ".join(dict.fromkeys(recipe_text(result, kind) for result in results))


def _memorisation(results: Results) -> Table:
    table = _figures_table(
        results, MEMORISED, "Unguided samples, 8×8 pixels. " + _counts(results, "unguided.memorisation")
    )
    warned = [piece.name for piece, result in results.items() if _warns(result, len(results))]
    said = "In no run are there more than by chance."
    if warned:
        said = f"There are more than by chance in {', '.join(warned)}."
    blind = [piece.name for piece, result in results.items() if _is_blind(result)]
    if blind:
        said += f" This is no evidence for {', '.join(blind)}, where most copies would be missed too."
    return Table(table.head, table.rows, f"{table.caption} {said}", table.labels)


def _warns(result: Result, runs: int) -> bool:
    """Whether a run has more near samples than by chance, corrected for the number of runs (Bonferroni)."""
    low, expected, chance = (
        figure(result, f"unguided.memorisation.coarse_share{end}") for end in ("_low", "_expected", "_chance")
    )
    return low is not None and expected is not None and chance is not None and low > expected and chance < CHANCE / runs


def _is_blind(result: Result) -> bool:
    """Whether most copies are missed after decoding."""
    found = figure(result, "unguided.memorisation.coarse_copies_share")
    return found is not None and found < 0.5


def _against(results: Results, theirs: Name) -> Table:
    """Ratios of Fréchet distances, and differences of other figures, paired by seed."""
    rows = []
    for name in variants_of(results):
        paired = pairs(results, name, theirs) if name != theirs else {}
        for shown in (*RECONSTRUCTION, *GENERATION):
            values = [
                value
                for ours, other in paired.values()
                if (value := _apart(shown.value(ours), shown.value(other), shown.logarithmic)) is not None
            ]
            if not values:
                continue
            found, style = estimate(values), ".3g"
            numbers = [None if value is None else math.exp(value) if shown.logarithmic else value
                       for value in (found.mean, found.low, found.high)]  # fmt: skip
            interval = "–" if numbers[1] is None else f"{numbers[1]:{style}} to {numbers[2]:{style}}"
            what = "ratio" if shown.logarithmic else "points apart" if shown.share else "difference"
            rows.append([name, f"{shown.title(results)}, {what}", f"{numbers[0]:{style}}", interval, str(found.n)])
    head = ["variant", f"against {theirs}", "mean", "95 % interval", "seeds"]
    caption = "With fewer than 10,000 images a Fréchet distance is indicative. It compares only at the same number."
    return Table(head, rows, caption, labels=2)


def _apart(ours: float | None, theirs: float | None, logarithmic: bool) -> float | None:
    if ours is None or theirs is None:
        return None
    return log_ratio(ours, theirs) if logarithmic else ours - theirs


def seed_table(results: Results) -> Table:
    """Every figure of every seed."""
    seeds = sorted({piece.seed for piece in results})
    rows = []
    for name in variants_of(results):
        for shown in ALL:
            values = by_seed(results, name, shown)
            if values:
                cells = [format(values[seed], shown.style) if seed in values else "–" for seed in seeds]
                rows.append([name, shown.title(results), *cells])
    return Table(["variant", "figure", *(f"seed {seed}" for seed in seeds)], rows, labels=2)
