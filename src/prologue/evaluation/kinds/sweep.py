"""`prologue evaluate sweep`: the sampling recipe closest to the training images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from tyro.conf import arg

from prologue.builtin import is_builtin, shown
from prologue.errors import ConfigError, EvaluationError, RunError
from prologue.evaluation.distances import INDICATIVE
from prologue.evaluation.evaluations import inputs_of, store_of
from prologue.evaluation.kinds._distances import trained_on_sentence
from prologue.evaluation.kinds.base import (
    FeaturesOption,
    Kind,
    Measurement,
    NoFigure,
    Options,
    Prepared,
    Row,
    SampledSubject,
    with_notes,
)
from prologue.evaluation.recipe_search import (
    Axes,
    Method,
    Plan,
    Request,
    axis_values,
    measure_recipe,
    reference_features,
    run_sweep,
    sweep_record,
)
from prologue.evaluation.runs import Record
from prologue.evaluation.samples import possible_recipe
from prologue.evaluation.store import Store, read_journal
from prologue.report.figures import COLOURS, INK, error_bars, panels, picture_of, style_axes
from prologue.sampling.flags import GUIDANCE_HELP, parse_guidance, recipe_words
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.locks import folder_lock
from prologue.utils.progress import progress

T = TypeVar("T")
_POINT = "point"
"""Name of a finished recipe in the store of a sweep that is not finished."""
_ROWS = 12
"""Recipes of the first rounds in the table."""
_NUMBERS = ("scale", "prologue_scale", "visual_scale", "power", "temperature", "prologue_temperature")

Numbers = Annotated[str | None, arg(metavar="A,B,…")]


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    guidance: Annotated[tuple[str, ...], arg(metavar="GUIDANCE")] = ()
    """Guidances to try, in the forms listed below."""
    scale: Numbers = None
    """Scales of every guidance for the whole sequence."""
    prologue_scale: Numbers = None
    """Scales of every split guidance in the prologue."""
    visual_scale: Numbers = None
    """Scales of every split guidance in the visual tokens."""
    power: Numbers = None
    """Powers of cosine schedules."""
    temperature: Numbers = None
    """Sampling temperatures."""
    prologue_temperature: Numbers = None
    """Sampling temperatures of prologue tokens."""
    top_k: Numbers = None
    """Whole numbers, or `off` for no limit."""
    top_p: Numbers = None
    """Probability masses, or `off` for no limit."""
    method: Method = "grid"
    """grid tries all recipes once; halving drops the worse half after each round and doubles the samples."""
    count: int = 512
    """Samples of each recipe in the first round."""
    final_count: int = 2048
    """Samples of each finalist."""
    finalists: int = 3
    """Number of best recipes that are measured again, besides the run's default."""
    features: FeaturesOption = "auto"
    store: Annotated[bool, NoFigure()] = True
    """Store the best recipe as the run's default."""

    def check(self) -> None:
        super().check()
        if self.checkpoint != "finished":
            raise ConfigError("a sweep stores the best recipe in a finished run: omit --checkpoint")

    def axes(self) -> Axes:
        """The values to try."""
        return Axes(
            tuple(map(parse_guidance, self.guidance)),
            **{name: _values(getattr(self, name), name, float) for name in _NUMBERS},
            top_k=_values(self.top_k, "top_k", _or_off(int)),
            top_p=_values(self.top_p, "top_p", _or_off(float)),
        )


def _values(text: str | None, name: str, read: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return () if text is None else tuple(read(part.strip()) for part in text.split(","))
    except ValueError:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} {text!r} cannot be read: write numbers separated by commas") from None


def _or_off(read: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: None if text == "off" else read(text)


class Sweep(Kind[SweepOptions]):
    """Measures many recipes, and stores the best one as the run's default."""

    summary = "which sampling recipe comes closest to the training images; the best becomes the default"
    options = SweepOptions
    example = "--temperature 0.8,0.9,1"
    epilog = f"""Values are separated by commas, guidances by spaces:
  prologue evaluate sweep RUN --guidance none overall:cosine:1 --scale 1.5,2,3 --temperature 0.8,0.9,1

{GUIDANCE_HELP}"""

    def prepare(self, options: SweepOptions) -> Prepared:
        axes = options.axes()
        plan = Plan(options.method, options.count, options.final_count, options.finalists)
        subject = SampledSubject.open(options)
        default = possible_recipe(subject.pipeline.recipe, subject.prior)
        recipes = axes.recipes(default)
        _check(recipes, options, subject)
        features = subject.features(options.features)
        if features.extractor is None:
            raise EvaluationError(f"a sweep needs a distance: {features.reason}")
        extractor, opened = features.extractor, subject.images
        real = opened.reference()

        def measure() -> Measurement:
            store = _points_of(self, prepared)
            known = len(store.earlier) + len(store.all()[0])
            if known:
                print(f"continuing after {known} points in {store.folder}", file=sys.stderr)
            reference: list[Tensor] = []

            def point(request: Request) -> Record:
                if not reference:
                    size = {"count": plan.final_count, "seed": options.seed, "batch": options.batch}
                    reference.append(reference_features(extractor, real, watch=progress, **size))
                drawn = {"count": request.count, "seed": request.seed, "batch": options.batch}
                return measure_recipe(
                    subject.tokenizer, subject.prior, request.recipe, extractor, reference[0], **drawn
                )

            def stored(request: Request) -> Record:
                inputs = [request.recipe.to_dict(), request.count, request.seed]
                return store.get(_POINT, inputs, lambda: point(request), on_error=_not_kept).record

            points = run_sweep(stored, recipes, default, plan, seed=options.seed, watch=progress)
            record = sweep_record(points, default, plan, extractor.name)
            record |= {"split": "train" if opened.own else "given", "n_reference": min(plan.final_count, len(real))}
            record |= {"features": extractor.name}
            record |= {"seed": options.seed, "trained_on_features": features.trained_on}
            return Measurement(with_notes(record, opened.notes), {"axes": sweep_chart(record)})

        def after(record: Record) -> None:
            folder = _points_of(self, prepared)
            folder.remove()
            folder.folder.with_suffix(".partial.jsonl").unlink(missing_ok=True)
            store_winner(options, record)

        origin = subject.facts() | features.facts() | {"recipes": [each.to_dict() for each in recipes]}
        prepared = Prepared(options, origin, measure, after)
        return prepared

    def rows(self, record: Record) -> Iterator[Row]:
        yield _row("best", record["measure"], record, record["leads"], "winner_")
        yield _row("previous default", record["measure"], record, record["leads"], "default_")
        final = [point for point in record["points"] if point["final"]]
        others = [point for point in record["points"] if not point["final"]]
        others.sort(key=lambda point: (-point["n"], point[point["leads"]]))
        for points in (final, others[:_ROWS]):
            for point in sorted(points, key=lambda point: (-point["n"], point[point["leads"]])):
                yield _row(f"  {recipe_words(point['recipe'])}", f"N = {point['n']}", point, point["leads"])

    def sentences(self, record: Record) -> Iterator[str]:
        if record["recipes"] > record["finalists"]:
            yield f"First {record['recipes']} recipes with {record['n_first']} samples each ({record['method']})."
        yield (
            f"{record['finalists']} finalists, the default included, with {record['n']} other samples each. All "
            f"recipes of a round have the same seeds and the same {record['n_reference']} training images as reference."
        )
        yield f"Best: {recipe_words(record['winner'])}."
        yield _verdict(record)
        known = (record["winner"], record["default"])
        rivals = [point for point in record["points"] if point["final"] and point["recipe"] not in known]
        near = [each for each in rivals if each["kid_low"] <= record["winner_kid_high"]]
        if near:
            yield f"{len(near)} of the {len(rivals)} other finalists are not distinguishable from the best."
        if record["changed"]:
            yield "The best was chosen by the samples of its figure, so the figure is slightly too good."
        if record["indicative"]:
            yield f"{record['kid_name']} leads instead of {record['fd_name']} below {INDICATIVE} images on a side."
        if record["trained_on_features"]:
            yield trained_on_sentence(record)


def _row(label: str, unit: str, record: Record, leads: str, prefix: str = "") -> Row:
    low, high = record[f"{prefix}kid_low"], record[f"{prefix}kid_high"]
    return f"{label}, {unit}", f"{record[prefix + leads]:.4g}", f"{low:.4g} … {high:.4g}" if leads == "kid" else ""


def _verdict(record: Record) -> str:
    """Whether the winner is better than the previous default."""
    default = recipe_words(record["default"])
    if not record["changed"]:
        return "No other recipe is closer than the run's default."
    if record["distinguishable"]:
        return f"It is closer than the previous default ({default}): the 95 % intervals are disjoint."
    return (
        f"It is not distinguishable from the previous default ({default}) at this N: the 95 % intervals of "
        f"{record['kid_name']} overlap."
    )


def _check(recipes: Sequence[Recipe], options: SweepOptions, subject: SampledSubject) -> None:
    """Refuse options that have no effect on this run."""
    if not subject.prior.num_classes and any(recipe.guidance.active for recipe in recipes):
        raise EvaluationError(f"{options.run} has no classes, and guidance needs them: omit it")
    if not subject.prior.layout.has_prologue and (options.prologue_temperature or options.prologue_scale):
        raise EvaluationError(f"{options.run} has no prologue tokens: omit their temperature and scale")


def _not_kept(error: OSError) -> None:
    print(f"note: a finished recipe is not kept: {error}", file=sys.stderr)


def store_winner(options: SweepOptions, record: Record) -> None:
    """Make the best recipe the run's default, unless it is or must not be; print which."""
    winner = Recipe.from_dict(record["winner"])
    words = recipe_words(record["winner"])
    if (Manifest.load(options.run).recipe or Recipe()) == winner:
        print(f"The run's default recipe is the best: {words}.")
        return
    if is_builtin(options.run):
        print(f"Not stored, since {shown(options.run)} is part of the package; the best recipe: {words}.")
        return
    if not options.store:
        print(f"Not stored because of --no-store; the best recipe: {words}.")
        return
    try:
        with folder_lock(options.run):  # a training of the run writes the same file
            Manifest.load(options.run).replace(recipe=winner).save(options.run)
        print(f"Stored as the run's default recipe: {words}.")
    except (OSError, RunError) as error:
        print(f"note: the recipe is not stored in {options.run}: {error}", file=sys.stderr)


def _points_of(kind: Kind[Any], prepared: Prepared) -> Store:
    """The finished points of a sweep, with which it continues after a stop.

    The folder is in that of the figures, named like their file. Earlier versions wrote a file of lines.
    """
    path = store_of(prepared.options.run).path(kind.name, inputs_of(kind, prepared))
    return Store(path.with_suffix(".partial"), read_journal(path.with_suffix(".partial.jsonl"), _POINT))


def sweep_chart(record: Record) -> Image.Image:
    """The leading distance over each option that was searched, with the best and the previous default."""
    points, leads = record["points"], record["leads"]
    ends = [leads, *(("kid_low", "kid_high") if leads == "kid" else ("fd", "fd"))]
    swept = [point["recipe"] for point in points if point["recipe"] != record["default"]] or [record["winner"]]
    first = [point for point in points if point["round"] == 0 and not point["final"]]
    final = [point for point in points if point["final"]]
    groups = [(f"finalists, N = {record['n']}", final, "D", 7)]
    if first:
        groups.insert(0, (f"N = {record['n_first']}", first, "o", 5))
    axes_of = _panels(swept)
    figure, drawn = panels(len(axes_of), (6.4, 0.6 + 2.9 * len(axes_of)), "Distance of each recipe", sharey=True)
    for axes, (name, values) in zip(drawn, axes_of, strict=True):
        style_axes(axes, x=name, y=record["measure"])
        value, low, high = (record[f"default_{end}"] for end in ends)
        axes.axhspan(low, high, color=COLOURS[4], alpha=0.15, linewidth=0)
        axes.axhline(value, color=COLOURS[4], linewidth=1.5, linestyle="--", label="previous default")
        for number, (label, group, marker, size) in enumerate(groups):
            inside = [point for point in group if _at(point, name) in values]
            places = _places([values.index(_at(point, name)) for point in inside], 0.3 * number - 0.15)
            middle, low, high = ([point[end] for point in inside] for end in ends)
            style: dict[str, Any] = {"fmt": marker, "markersize": size, "elinewidth": 1.2, "capsize": 2}
            style |= {"color": COLOURS[2 * number], "label": label}
            axes.errorbar(places, middle, yerr=error_bars(middle, low, high), **style)
            for x, point in zip(places, inside, strict=True):
                if point["final"] and point["recipe"] == record["winner"]:
                    star: dict[str, Any] = {"markersize": 19, "markeredgecolor": INK, "zorder": 3, "linestyle": "none"}
                    axes.plot(x, point[leads], "*", color=COLOURS[1], label="best", **star)
        labels = ["none" if value is None else value if isinstance(value, str) else f"{value:g}" for value in values]
        turned = sum(len(label) + 2 for label in labels) > 60
        axes.set_xticks(range(len(labels)), labels, rotation=20 if turned else 0, ha="right" if turned else "center")
        axes.set_xlim(-0.5, len(labels) - 0.5)
    handles, names = drawn[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, labelcolor=INK, ncols=2, loc="outside lower left", fontsize=9)
    return picture_of(figure)


def _at(point: Record, name: str) -> Any:
    return axis_values(Recipe.from_dict(point["recipe"]))[name]


def _places(values: Sequence[int], shift: float) -> np.ndarray:
    """Places on the axis; points of one value are drawn side by side."""
    places = np.asarray(values, dtype=float)
    for value in np.unique(places):
        same = places == value
        places[same] += np.linspace(-0.14, 0.14, same.sum()) if same.sum() > 1 else 0
    return places + shift


def _panels(recipes: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    """Each option with several values, and these in order, None first.

    An option that some recipes have with one value only, such as the scale of the only guidance, is no panel.
    """
    places = [axis_values(Recipe.from_dict(recipe)) for recipe in recipes]
    found = []
    for name in places[0]:
        values = sorted({place[name] for place in places}, key=lambda value: (value is not None, value or 0))
        if sum(value is not None for value in values) > 1 or (len(values) > 1 and name in ("top-k", "top-p")):
            found.append((name, values))
    return found or [("temperature", [places[0]["temperature"]])]
