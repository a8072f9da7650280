"""`prologue evaluate sweep`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from torch import Tensor
from tyro.conf import arg

from prologue.builtin import is_builtin, shown
from prologue.cli._evaluations import key_of, place
from prologue.cli._options import parse
from prologue.cli.kinds.base import (
    FeaturesOption,
    Measurement,
    NoFigure,
    Options,
    Prepared,
    Row,
    checked,
    facts,
    with_notes,
)
from prologue.errors import ConfigError, EvaluationError, RunError
from prologue.evaluation.distances import INDICATIVE
from prologue.evaluation.feature_networks import Features
from prologue.evaluation.generation import possible_recipe
from prologue.evaluation.runs import Record, RunInfo
from prologue.evaluation.sweep import (
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
from prologue.pipeline import Pipeline
from prologue.report.figures_sweep import Marks, Panel, sweep_chart
from prologue.sampling.flags import GUIDANCE_HELP, parse_guidance, recipe_words
from prologue.sampling.manifest import Manifest
from prologue.sampling.recipe import Recipe
from prologue.utils.locks import folder_lock
from prologue.utils.measurements import plain
from prologue.utils.progress import progress

T = TypeVar("T")
EXAMPLE = "--temperature 0.8,0.9,1"
"""Options without which there is nothing to measure, as one may begin."""
_ROWS = 12
"""Recipes of the first rounds that the table shows."""
HELP = f"""Values stand between commas, guidances between spaces:
  prologue evaluate sweep RUN --guidance none overall:cosine:1 --scale 1.5,2,3 --temperature 0.8,0.9,1

{GUIDANCE_HELP}"""

Numbers = Annotated[str | None, arg(metavar="A,B,…")]


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    guidance: Annotated[tuple[str, ...], arg(metavar="GUIDANCE")] = ()
    """Guidances to try; the forms are listed below."""
    scale: Numbers = None
    """Scales of guidance over the whole sequence, in each overall guidance."""
    prologue_scale: Numbers = None
    """Scales in the prologue, in each split guidance."""
    visual_scale: Numbers = None
    """Scales behind the prologue, in each split guidance."""
    power: Numbers = None
    """Powers of cosine schedules."""
    temperature: Numbers = None
    prologue_temperature: Numbers = None
    """Temperatures of prologue tokens alone."""
    top_k: Numbers = None
    """Whole numbers, `off` for no limit."""
    top_p: Numbers = None
    """Masses, `off` for no limit."""
    method: Method = "grid"
    """halving leaves out the worse half after each round and doubles the samples; grid tries all once."""
    count: int = 512
    """Samples of each recipe in the first round."""
    final_count: int = 2048
    """Samples of each finalist."""
    finalists: int = 3
    """Recipes that are measured again, beside the run's default."""
    features: FeaturesOption = "auto"
    store: Annotated[bool, NoFigure()] = True
    """Make the winner the run's default recipe; --no-store leaves it as it is."""

    def axes(self) -> Axes:
        """The values to try, read and checked."""
        numbers = {
            name: _values(getattr(self, name), name, float)
            for name in ("scale", "prologue_scale", "visual_scale", "power", "temperature", "prologue_temperature")
        }
        return Axes(
            tuple(map(parse_guidance, self.guidance)),
            **numbers,
            top_k=_values(self.top_k, "top_k", _or_off(int)),
            top_p=_values(self.top_p, "top_p", _or_off(float)),
        )


def _values(text: str | None, name: str, read: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return () if text is None else tuple(read(part.strip()) for part in text.split(","))
    except ValueError:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} {text!r} cannot be read: write numbers between commas") from None


def _or_off(read: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: None if text == "off" else read(text)


def prepare(argv: Sequence[str]) -> Prepared:
    prog, description = "prologue evaluate sweep", "Find the sampling recipe that comes closest to the training images."
    options = checked(parse(SweepOptions, argv, prog, description, HELP))
    if options.checkpoint != "finished":
        raise ConfigError("a sweep stores its winner as the recipe of a finished run: leave --checkpoint out")
    axes = options.axes()
    plan = Plan(options.method, options.count, options.final_count, options.finalists)
    info = RunInfo.load(options.run, options.checkpoint)
    pipeline = Pipeline.from_pretrained(info.source, options.device, options.dtype)
    default = possible_recipe(pipeline.recipe, pipeline.prior)
    recipes = axes.recipes(default)
    _check(recipes, options, pipeline)
    features = Features.open(
        options.features, info.data_name(options.data), pipeline.device, pipeline.manifest.trained_on
    )
    if features.extractor is None:
        raise EvaluationError(f"a sweep needs a distance, and there is none: {features.reason}")
    extractor = features.extractor
    opened = options.open_data(info, pipeline.tokenizer.config.image_size)
    real = opened.reference()

    def measure() -> Measurement:
        journal = Journal.open(_journal_path(prepared))
        reference: list[Tensor] = []

        def point(request: Request) -> Record:
            if not reference:
                size = {"count": plan.final_count, "seed": options.seed, "batch": options.batch}
                reference.append(reference_features(extractor, real, watch=progress, **size))
            drawn = {"count": request.count, "seed": request.seed, "batch": options.batch}
            return measure_recipe(pipeline.tokenizer, pipeline.prior, request.recipe, extractor, reference[0], **drawn)

        points = run_sweep(
            lambda request: journal.get(request, lambda: point(request)),
            recipes,
            default,
            plan,
            seed=options.seed,
            watch=progress,
        )
        record = sweep_record(points, default, plan, extractor.name)
        record |= {"split": "train" if opened.own else "given", "n_reference": min(plan.final_count, len(real))}
        record |= {"features": extractor.name}
        record |= {"seed": options.seed, "trained_on_features": features.trained_on}
        return Measurement(with_notes(record, opened.notes), {"axes": picture(record)})

    def after(record: Record) -> None:
        _journal_path(prepared).unlink(missing_ok=True)
        _store(options, record)

    origin = facts(info, options, opened, pipeline.device) | features.facts()
    prepared = Prepared(options, origin | {"recipes": [each.to_dict() for each in recipes]}, measure, after)
    return prepared


def _check(recipes: Sequence[Recipe], options: SweepOptions, pipeline: Pipeline) -> None:
    """Refuse options that this run has no use for."""
    if not pipeline.prior.num_classes and any(recipe.guidance.active for recipe in recipes):
        raise EvaluationError(
            f"{options.run} has no classes, so there is nothing for guidance to lean on: leave it out"
        )
    if not pipeline.prior.layout.has_prologue and (options.prologue_temperature or options.prologue_scale):
        raise EvaluationError(f"{options.run} has no prologue tokens: leave its temperature and scale out")


def _journal_path(prepared: Prepared) -> Path:
    return place(prepared.options.run, "sweep", key_of("sweep", prepared)).with_suffix(".partial.jsonl")


def _store(options: SweepOptions, record: Record) -> None:
    winner = Recipe.from_dict(record["winner"])
    words = recipe_words(record["winner"])
    if (Manifest.load(options.run).recipe or Recipe()) == winner:
        print(f"The run's default recipe is the best: {words}.")
        return
    if is_builtin(options.run):
        print(f"Not stored, since {shown(options.run)} comes with the package; the best recipe: {words}.")
        return
    if not options.store:
        print(f"Not stored; without --no-store this becomes the run's default recipe: {words}.")
        return
    try:
        with folder_lock(options.run):  # whoever trains the run writes the same file
            Manifest.load(options.run).replace(recipe=winner).save(options.run)
        print(f"Stored as the run's default recipe: {words}.")
    except (OSError, RunError) as error:
        print(f"note: the recipe is not stored in {options.run}: {error}", file=sys.stderr)


class Journal:
    """Finished points, one a line, so that a sweep that was stopped goes on with the next one."""

    def __init__(self, path: Path, found: dict[str, Record]) -> None:
        self.path = path
        self._found = found
        self._writes = True

    @classmethod
    def open(cls, path: Path) -> Journal:
        """What an earlier call has left; a last line that was cut off is measured again."""
        found: dict[str, Record] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            try:
                entry = json.loads(line)
                found[entry["request"]] = dict(entry["figures"])
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                continue
        if found:
            print(f"going on after {len(found)} points that {path} holds", file=sys.stderr)
        return cls(path, found)

    def get(self, request: Request, measure: Callable[[], Record]) -> Record:
        """The figures that are there, or those that `measure` finds now."""
        of = [request.recipe.to_dict(), request.count, request.seed]
        name = json.dumps(of, sort_keys=True)
        if name not in self._found:
            self._found[name] = plain(measure())
            self._append({"request": name, "figures": self._found[name]})
        return self._found[name]

    def _append(self, entry: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # A line that was cut off by a kill must not swallow this one.
                file.write("\n" * (file.tell() > 0) + json.dumps(entry))
        except OSError as error:
            self._writes = False
            print(f"note: finished points are not kept in {self.path}: {error}", file=sys.stderr)


def picture(record: Record) -> Image.Image:
    """The leading distance against each option that was swept, with the best and the default of before."""
    points, leads = record["points"], record["leads"]
    panels = _panels(
        [point["recipe"] for point in points if point["recipe"] != record["default"]] or [record["winner"]]
    )

    def places(recipe: Record) -> list[int | None]:
        at = axis_values(Recipe.from_dict(recipe))
        return [values.index(at[name]) if at[name] in values else None for name, values in panels]

    def ends(figures: Record, prefix: str = "") -> tuple[float, float, float]:
        low, high = ("kid_low", "kid_high") if leads == "kid" else ("fd", "fd")
        return figures[prefix + leads], figures[prefix + low], figures[prefix + high]

    def marks(name: str, of: Sequence[Record], best: int | None = None) -> Marks:
        distance, low, high = zip(*map(ends, of), strict=True)
        at = list(zip(*(places(point["recipe"]) for point in of), strict=True))
        return Marks(name, distance, low, high, at, best)

    final = [point for point in points if point["final"]]
    first = [point for point in points if point["round"] == 0 and not point["final"]]
    groups = [marks(f"N = {record['n_first']}", first)] if first else []
    best = [point["recipe"] for point in final].index(record["winner"])
    groups.append(marks(f"finalists, N = {record['n']}", final, best))
    shown = [Panel(name, [_value(value) for value in values]) for name, values in panels]
    return sweep_chart("Distance of each recipe", record["measure"], shown, groups, ends(record, "default_"))


def _panels(recipes: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    """Each option of which the recipes have several values, with these in order; none comes first.

    An option that recipes either have or lack, as the scale of the one guidance among them, is no axis of its own.
    """
    places = [axis_values(Recipe.from_dict(recipe)) for recipe in recipes]
    found = []
    for name in places[0]:
        values = sorted({place[name] for place in places}, key=lambda value: (value is not None, value or 0))
        if sum(value is not None for value in values) > 1 or (len(values) > 1 and name in ("top-k", "top-p")):
            found.append((name, values))
    return found or [("temperature", [places[0]["temperature"]])]


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def rows(record: Record) -> Iterator[Row]:
    yield _row("best", record["measure"], record, record["leads"], "winner_")
    yield _row("default before", record["measure"], record, record["leads"], "default_")
    final = [point for point in record["points"] if point["final"]]
    others = [point for point in record["points"] if not point["final"]]
    for points in (final, sorted(others, key=lambda point: (point["n"], -point[point["leads"]]), reverse=True)[:_ROWS]):
        for point in sorted(points, key=lambda point: (-point["n"], point[point["leads"]])):
            yield _row(f"  {recipe_words(point['recipe'])}", f"N = {point['n']}", point, point["leads"])


def _row(label: str, unit: str, record: Record, leads: Literal["kid", "fd"], prefix: str = "") -> Row:
    low, high = record[f"{prefix}kid_low"], record[f"{prefix}kid_high"]
    return f"{label}, {unit}", f"{record[prefix + leads]:.4g}", f"{low:.4g} … {high:.4g}" if leads == "kid" else ""


def sentences(record: Record) -> Iterator[str]:
    others = record["recipes"] - record["finalists"]
    first = (
        ""
        if others <= 0
        else f"{record['recipes']} recipes, first with {record['n_first']} samples each ({record['method']}); "
    )
    yield (
        f"{first}{record['finalists']} finalists, the default among them, with {record['n']} other samples each. All "
        f"of a round have the same seeds, and {record['n_reference']} training images are the reference of all."
    )
    yield f"Best: {recipe_words(record['winner'])}."
    yield verdict(record)
    near = [each for each in _rivals(record) if each["kid_low"] <= record["winner_kid_high"]]
    if near:
        yield f"Of the {len(_rivals(record))} other finalists {len(near)} are not distinguishable from the best."
    if record["changed"]:
        yield "The best was chosen on the samples that its figure is of, so the figure flatters it a little."
    if record["indicative"]:
        yield f"With fewer than {INDICATIVE} images on a side {record['kid_name']} leads, not {record['fd_name']}."
    if record["trained_on_features"]:
        yield f"The tokenizer trained on these features ({record['features']}): the distances flatter this run."


def _rivals(record: Record) -> list[Record]:
    """The finalists beside the winner and the default of before."""
    known = (record["winner"], record["default"])
    return [point for point in record["points"] if point["final"] and point["recipe"] not in known]


def verdict(record: Record) -> str:
    """Whether the winner is better than what was the default, as far as the intervals tell."""
    default = recipe_words(record["default"])
    if not record["changed"]:
        return "No recipe of the sweep came closer than the run's default."
    if record["distinguishable"]:
        return f"It is closer than the default before ({default}) beyond the 95 % intervals."
    return (
        f"It is not distinguishable from the default before ({default}) at this N: the 95 % intervals of "
        f"{record['kid_name']} overlap."
    )
