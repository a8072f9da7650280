"""The tables of a study from its results, as Markdown, JSON and a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prologue.config import save_json, to_dict
from prologue.evaluation.memorisation import CHANCE
from prologue.report.page import Block, Fold, Picture, Report, Section, Table, Text
from prologue.reproduce.claims import (
    Claim,
    Results,
    figure,
    headline,
    interval_text,
    judge_claims,
    pairs,
    sentence,
    text_figure,
)
from prologue.reproduce.pictures import FOLDER, find_picture
from prologue.reproduce.pieces import Piece, Result
from prologue.reproduce.scales import VARIANTS, Name, Scale
from prologue.reproduce.verdicts import estimate, log_ratio, prediction
from prologue.sampling.recipe import Recipe

MARKDOWN, JSON, PAGE = "tables.md", "results.json", "report.html"


@dataclass(frozen=True)
class Figure:
    """A figure of the tables: where it is in a result, how it is shown, and on which scale seeds are averaged."""

    label: str
    path: str
    style: str = ".3g"
    factor: float = 1.0
    logarithmic: bool = False
    """Geometric mean, and ratios between variants."""
    named: str | None = None
    """Path of the measure's name, which stands for `{}` in the label."""

    def value(self, result: Result) -> float | None:
        found = figure(result, self.path)
        return None if found is None else self.factor * found

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where the figure cannot leave: of rates in per cent."""
        return (0.0, 100.0) if self.factor == 100 else None

    def title(self, results: Results) -> str:
        """The label with the measure's own name."""
        if self.named is None:
            return self.label
        names = (text_figure(result, self.named) for result in results.values())
        return self.label.format(next((name for name in names if name), "?"))


RECONSTRUCTION = (
    Figure("PSNR, dB", "reconstruction.psnr", ".2f"),
    Figure("r{}", "reconstruction.fd", logarithmic=True, named="reconstruction.fd_name"),
    Figure("r{}", "reconstruction.kid", ".4f", named="reconstruction.kid_name"),
    Figure("class recognised, %", "recognition.rate", ".1f", 100),
    Figure("codes in use, %", "reconstruction.visual_usage", ".1f", 100),
)
GENERATION = tuple(
    part
    for kind in ("unguided", "guided")
    for part in (
        Figure(f"g{{}}, {kind}", f"{kind}.fd", logarithmic=True, named=f"{kind}.fd_name"),
        Figure(f"g{{}}, {kind}", f"{kind}.kid", ".4f", named=f"{kind}.kid_name"),
        Figure(f"class recognised, {kind}, %", f"{kind}.recognition.rate", ".1f", 100),
    )
)
CARRIED = (
    Figure("cost", "likelihood.cost", ".2f"),
    Figure("diversity", "likelihood.diversity", ".2f"),
    Figure("use", "likelihood.use", ".2f"),
    Figure("gain", "likelihood.gain", ".2f"),
    Figure("all tokens", "likelihood.nats", ".1f"),
    Figure("entropy of the visual ids", "likelihood.visual_entropy", ".1f"),
)
INSIDE = (
    Figure("probe of the prologue, %", "probe.prologue", ".1f", 100),
    Figure("probe of as many first visual tokens, %", "probe.visual_first", ".1f", 100),
    Figure("chance, %", "probe.chance", ".1f", 100),
    Figure("layout: within / between prologues", "layout.coarse_ratio", ".3f", logarithmic=True),
)
MEMORISED = (
    Figure("samples very near a training image, %", "unguided.memorisation.coarse_share", ".2f", 100),
    Figure("the same if they were like held-out images, %", "unguided.memorisation.coarse_share_expected", ".2f", 100),
    Figure("the same of copies, %", "unguided.memorisation.coarse_copies_share", ".1f", 100),
)
ALL = (*RECONSTRUCTION, *GENERATION, *CARRIED, *INSIDE, *MEMORISED)

EDGE = "†"

_AVERAGED = (
    "Each cell: mean over seeds with its 95 % t interval, and beneath it where one further seed lies in 95 % of all "
    "cases. Fréchet distances and ratios are averaged as logarithms."
)


def write_tables(out: Path, results: Results, scale: Scale, provenance: Mapping[str, Any]) -> list[str]:
    """Write `tables.md`, `results.json` and `report.html`; the claims' sentences come back."""
    claims = judge_claims(results)
    tables = make_tables(results, claims)
    sentences = [sentence(claim) for claim in claims]
    (out / MARKDOWN).write_text(markdown(tables, [*sentences, *notes_of(claims)]), encoding="utf-8")
    save_json(out / JSON, summary(results, claims, scale, provenance))
    _page(out, results, claims, tables, provenance).write(out / PAGE, beside=False)
    return sentences


def variants_of(results: Results) -> list[Name]:
    there = {piece.variant for piece in results}
    return [name for name in VARIANTS if name in there]


def by_seed(results: Results, variant: Name, shown: Figure) -> dict[int, float]:
    """A figure of a variant's seeds, where it is there."""
    values = {piece.seed: shown.value(result) for piece, result in results.items() if piece.variant == variant}
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def cell_figures(
    values: Sequence[float], logarithmic: bool, bounds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Mean, interval, and prediction of one further seed; on logarithms where asked and possible, within `bounds`."""
    logs = logarithmic and all(value > 0 for value in values)
    seen = [math.log(value) for value in values] if logs else list(values)
    found, next_one = estimate(seen), prediction(seen)

    def back(value: float | None) -> float | None:
        if value is None:
            return None
        plain = math.exp(value) if logs else value
        return plain if bounds is None else min(max(plain, bounds[0]), bounds[1])

    ends = (None, None) if next_one is None else next_one
    record = {"n": found.n, "mean": back(found.mean), "low": back(found.low), "high": back(found.high)}
    return record | {"one_further_seed_low": back(ends[0]), "one_further_seed_high": back(ends[1])}


def _cell(values: Sequence[float], shown: Figure) -> str:
    if not values:
        return "–"
    record = cell_figures(values, shown.logarithmic, shown.bounds)
    text = format(record["mean"], shown.style)
    if record["low"] is None or record["low"] == record["high"]:
        return text
    low, high, next_low, next_high = (
        format(record[key], shown.style) for key in ("low", "high", "one_further_seed_low", "one_further_seed_high")
    )
    return f"{text} ({low} to {high})\nnext seed {next_low} to {next_high}"


def make_tables(results: Results, claims: Sequence[Claim]) -> dict[str, Table]:
    """All tables by their titles; those without rows are left out."""
    tables = {
        "Claims": _claims_table(claims),
        "Budgets": _budgets(results),
        "Reconstruction": _figures_table(
            results,
            RECONSTRUCTION,
            f"Held-out images against themselves. {_counts(results, 'reconstruction')} {_originals(results)}",
        ),
        "Generation": _figures_table(
            results,
            GENERATION,
            "Samples against training images, labels uniform. Each run at its own recipe, chosen among the same few "
            f"with the same number of samples against held-out images. {_counts(results, 'unguided')} "
            f"{_originals(results)}",
        ),
        "What the prologue carries": _figures_table(
            results,
            CARRIED,
            "Nats per image over held-out images. Gain is against a prior without a prologue on the same visual ids. "
            "All tokens do not compare across tokenizers. " + _counts(results, "likelihood"),
        ),
        "Inside the tokens": _figures_table(results, INSIDE, _counts(results, "probe")),
        "Memorisation": _memorisation(results),
        "Against 2d, seed by seed": _against(results, "2d"),
        "The last seed, from the others": _last_seeds(results),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _counts(results: Results, name: str) -> str:
    """How many were measured, and against how many."""
    counts, against = (
        sorted({int(n) for result in results.values() if (n := figure(result, f"{name}.{key}")) is not None})
        for key in ("n", "n_reference")
    )
    if not counts:
        return ""
    reference = f" against {', '.join(map(str, against))}" if against else ""
    return f"N = {', '.join(map(str, counts))}{reference}."


def _originals(results: Results) -> str:
    """What the classifier makes of real images, which no sample can be expected to exceed by much."""
    rates = [rate for result in results.values() if (rate := figure(result, "recognition.originals_rate")) is not None]
    if not rates:
        return ""
    return f"The classifier recognises the class in {100 * sum(rates) / len(rates):.1f} % of the held-out images."


def _figures_table(results: Results, figures: Sequence[Figure], caption: str) -> Table:
    """A row for each variant; columns that nobody has are left out."""
    names = variants_of(results)
    columns = [shown for shown in figures if any(by_seed(results, name, shown) for name in names)]
    rows = []
    for name in names:
        values = [list(by_seed(results, name, shown).values()) for shown in columns]
        if any(values):
            seeds = sum(piece.variant == name for piece in results)
            rows.append([name, *map(_cell, values, columns), str(seeds)])
    head = ["variant", *(shown.title(results) for shown in columns), "seeds"]
    return Table(head, rows if columns else [], f"{caption} {_AVERAGED}")


def _claims_table(claims: Sequence[Claim]) -> Table:
    rows = []
    for claim in claims:
        verdict, predicted = claim.verdict, claim.predicted
        found = "–" if verdict is None else f"{interval_text(claim, verdict.estimate)}\n{claim.measure}"
        limit = "–"
        if verdict is not None:
            limit = f"{'≤' if verdict.at_most else '≥'} {claim.shown(verdict.threshold):.3g}"
        further = "–" if predicted is None else f"{predicted[0]:.3g} to {predicted[1]:.3g}"
        needed = "" if verdict is None or verdict.needed is None else f", {verdict.needed} would decide"
        seeds = f"{len(claim.by_seed)} seed{'' if len(claim.by_seed) == 1 else 's'}{needed}"
        rows.append([f"{claim.ours}: {claim.short}", f"{claim.outcome}\n{seeds}", found, limit, further])
    caption = (
        "Seeds are paired. A claim is confirmed where the 95 % interval lies beyond its limit, refuted where wholly on "
        "the other side, else undecided; each is judged by itself, so among many one may be off by chance. The number "
        "of seeds that would decide supposes that mean and spread stay as they are."
    )
    return Table(["claim", "verdict", "found", "claimed", "one further seed"], rows, caption, labels=2)


def _budgets(results: Results) -> Table:
    rows = []
    for name in variants_of(results):
        own = [result for piece, result in results.items() if piece.variant == name]
        images, flops = own[0]["images"], own[0]["flops"]
        seconds = {key: sum(result["seconds"][key] for result in own) / len(own) for key in own[0]["seconds"]}
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
        "Images, batches and network sizes are the same in each stage, and so is the effort of choosing a recipe; "
        "FLOPs (matrix products) and seconds (mean over seeds) are what that costs each variant. prologue-post has one "
        "more encoder, and its figures leave out stage 1 of the 2d that it starts from. one-stage samples with the "
        "prior of stage 1, which has a quarter of the blocks. The gain of prologue takes one more prior, which is not "
        f"counted here, nor is the encoding of the images. {EDGE} marks recipes at an end of what was tried."
    )
    head = ["variant", "images, stage 1", "images, stage 2", "parameters, M", "TFLOPs", "seconds", "measuring, s",
            "unguided recipe", "guided recipe"]  # fmt: skip
    return Table(head, rows, caption)


def _recipes(results: Sequence[Result], kind: str) -> str:
    return "; ".join(dict.fromkeys(_recipe(result, kind) for result in results))


def _recipe(result: Result, kind: str) -> str:
    record = result["measures"].get(kind)
    if record is None:
        return "–"
    tried = result["measures"].get(f"choice_{kind}", {}).get("tried", ())
    recipe, *others = (Recipe.from_dict(each["recipe"]) for each in (record, *tried))
    guided = recipe.guidance.whole is not None
    values = sorted({_strength(each) for each in others})
    mark = EDGE if len(values) > 2 and _strength(recipe) in (values[0], values[-1]) else ""
    return f"{f'scale {_strength(recipe):g}, ' if guided else ''}T {recipe.temperature:g}{mark}"


def _strength(recipe: Recipe) -> float:
    """What the sweep varies most: the scale of the guidance, without one the temperature."""
    whole = recipe.guidance.whole
    return recipe.temperature if whole is None else whole.scale


def _memorisation(results: Results) -> Table:
    table = _figures_table(results, MEMORISED, "Unguided samples, 8×8 pixels. " + _counts(results, "unguided"))
    warned = [piece.name for piece, result in results.items() if _warns(result, len(results))]
    said = f"More than chance allows: {', '.join(warned)}." if warned else "In no run are they more than chance allows."
    return Table(table.head, table.rows, f"{table.caption} {said}", table.labels)


def _warns(result: Result, runs: int) -> bool:
    """More near samples than chance gives, where each of `runs` has its chance (Bonferroni)."""
    low, expected, chance = (
        figure(result, f"unguided.memorisation.coarse_share{end}") for end in ("_low", "_expected", "_chance")
    )
    return low is not None and expected is not None and chance is not None and low > expected and chance < CHANCE / runs


def _against(results: Results, theirs: Name) -> Table:
    """Paired over seeds: the ratio of Fréchet distances, the difference of everything else."""
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
            what = "ratio" if shown.logarithmic else "difference"
            rows.append([name, f"{shown.title(results)}, {what}", f"{numbers[0]:{style}}", interval, str(found.n)])
    head = ["variant", f"against {theirs}", "mean", "95 % interval", "seeds"]
    caption = "Below 10,000 images a Fréchet distance is indicative: it compares at the same number only."
    return Table(head, rows, caption, labels=2)


def _apart(ours: float | None, theirs: float | None, logarithmic: bool) -> float | None:
    if ours is None or theirs is None:
        return None
    return log_ratio(ours, theirs) if logarithmic else ours - theirs


def _last_seeds(results: Results) -> Table:
    """Whether each variant's last seed lies where the earlier ones predict it; from three earlier seeds on."""
    rows = []
    for name in variants_of(results):
        inside, all_of, out = 0, 0, []
        last = max(piece.seed for piece in results if piece.variant == name)
        for shown in ALL:
            values = by_seed(results, name, shown)
            if len(values) < 4 or last not in values:
                continue
            earlier = [value for seed, value in values.items() if seed != last]
            record = cell_figures(earlier, shown.logarithmic, shown.bounds)
            all_of += 1
            slack = 1e-9 * abs(values[last])  # figures that no seed changes come back from logarithms rounded
            if record["one_further_seed_low"] - slack <= values[last] <= record["one_further_seed_high"] + slack:
                inside += 1
            else:
                out.append(shown.title(results))
        if all_of:
            rows.append([name, str(last), f"{inside} of {all_of}", ", ".join(out) or "–"])
    caption = "95 % intervals from the seeds before: one figure in twenty lies outside by chance."
    return Table(["variant", "last seed", "figures inside", "outside"], rows, caption, labels=2)


def markdown(tables: Mapping[str, Table], sentences: Sequence[str]) -> str:
    """The tables for a Markdown page."""
    lines = [*(f"- {text}" for text in sentences), ""] if sentences else []
    for title, table in tables.items():
        lines += [f"## {title}", "", *_markdown_table(table), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    yield line(table.head)
    yield "|" + "---|" * table.labels + "---:|" * (len(table.head) - table.labels)
    yield from (line(row) for row in table.rows)
    if table.caption:
        yield from ("", table.caption)


def summary(results: Results, claims: Sequence[Claim], scale: Scale, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """`results.json`: the claims, each figure of each variant over seeds, and by seed."""
    figures = []
    for name in variants_of(results):
        for shown in ALL:
            values = by_seed(results, name, shown)
            if values:
                record = {"variant": name, "figure": shown.path, "label": shown.title(results), "factor": shown.factor}
                record |= cell_figures(list(values.values()), shown.logarithmic, shown.bounds)
                figures.append(record | {"by_seed": {str(seed): value for seed, value in values.items()}})
    return {
        "provenance": dict(provenance),
        "scale": to_dict(scale),
        "effect": headline(list(claims)),
        "claims": [claim.record() for claim in claims],
        "figures": figures,
        "pieces": [_facts(piece, result) for piece, result in results.items()],
    }


def _facts(piece: Piece, result: Result) -> dict[str, Any]:
    """What a piece cost and chose; its measures are in its own file."""
    kept = ("images", "flops", "seconds", "parameters", "precision", "weights", "provenance")
    recipes = {kind: (result["measures"].get(kind) or {}).get("recipe") for kind in ("unguided", "guided")}
    return {"variant": piece.variant, "seed": piece.seed, **{key: result[key] for key in kept}, "recipes": recipes}


def verdict_line(claims: Sequence[Claim]) -> tuple[str, bool | None]:
    """The page's first sentence, and whether it is good news."""
    outcome = headline(list(claims))
    effect = "the paper's effect (unguided samples at least 1.5 times closer, reconstructions at most 5 % worse)"
    if outcome is None:
        return f"Not asked here: {effect}, which takes prologue and 2d.", None
    words = {"confirmed": f"Confirmed: {effect}.", "refuted": f"Not here: {effect} is refuted at this size.",
             "undecided": f"Undecided: {effect}."}  # fmt: skip
    good = {"confirmed": True, "refuted": False}.get(outcome)
    return words[outcome], good


def _page(
    out: Path, results: Results, claims: Sequence[Claim], tables: Mapping[str, Table], provenance: Mapping[str, Any]
) -> Report:
    line, good = verdict_line(claims)
    sections = [
        Section("What may be said", [Text(sentence(claim)) for claim in claims]),
        *(Section(title, [table]) for title, table in tables.items()),
        Section("Pictures", _pictures(out, results)),
        Section("By seed", [Fold("every figure of every seed", [_seed_table(results)])]),
    ]
    sections.append(Section("Notes", [Text(note) for note in notes_of(claims)]))
    footer = "Made by " + ", ".join(f"{key} {value}" for key, value in provenance.items())
    return Report("The paper's tables in small", line, [each for each in sections if each.blocks], good, footer)


def notes_of(claims: Sequence[Claim]) -> list[str]:
    """What was noticed while judging, each once."""
    return list(dict.fromkeys(f"{claim.ours}: {note}." for claim in claims for note in claim.notes))


_KINDS = {
    "unguided": "Unguided samples",
    "guided": "Guided samples",
    "resampled": "Images drawn from one prologue each",
}


def _pictures(out: Path, results: Results) -> list[Block]:
    """Of the first seed of each variant: the first samples that were measured, not picked."""
    blocks: list[Block] = []
    for name in variants_of(results):
        piece = next(piece for piece in results if piece.variant == name)
        for kind, what in _KINDS.items():
            image = find_picture(out / FOLDER, piece.name, kind)
            if image is not None:
                caption = f"{what} of {name}, seed {piece.seed}; the first ones, not picked."
                blocks.append(Picture(f"{piece.name}-{kind}", image, what, caption, wide=True))
    return blocks


def _seed_table(results: Results) -> Table:
    seeds = sorted({piece.seed for piece in results})
    rows = []
    for name in variants_of(results):
        for shown in ALL:
            values = by_seed(results, name, shown)
            if values:
                cells = [format(values[seed], shown.style) if seed in values else "–" for seed in seeds]
                rows.append([name, shown.title(results), *cells])
    return Table(["variant", "figure", *(f"seed {seed}" for seed in seeds)], rows, labels=2)
