"""The sections of `prologue report`, made from what was read of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from prologue.cli._reported import Reported, Shown, example, is_known, kind_of, shown
from prologue.cli.evaluate import KINDS
from prologue.errors import ConfigError
from prologue.report.curves import EXPLAINED, Trained, training_curves
from prologue.report.page import Block, Commands, Fold, Gallery, Picture, Points, Report, Section, Table, Text
from prologue.sampling.flags import recipe_words
from prologue.utils.files import in_shell

ORDER = (
    "reconstruction", "generation", "likelihood", "probe", "layout", "intervention", "attention", "memorisation",
    "codebook", "sweep",
)  # fmt: skip
"""Kinds in the order of their sections; others follow by name."""
WIDEST, TALLEST = 1600, 3200
"""Pixels above which a picture is made smaller."""
_WIDE = 1200
_INDENT = "\u2003"


def runs_report(runs: Sequence[Reported], footer: str, maker: str) -> Report:
    """The whole page. Measurements that cannot be shown are named in it."""
    faults = [fault for run in runs for fault in run.faults]
    newest, earlier = _told(runs, faults)
    kinds = sorted({*newest}, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER), kind))
    sections = [Section(_title(kind), _kind(kind, newest[kind], earlier.get(kind, []), runs, faults)) for kind in kinds]
    missing = _missing(runs, newest)
    sections = [
        Section("Runs", _runs(runs, faults)),
        *sections,
        Section("Training", _training(runs)),
        Section("Not measured yet", missing),
    ]
    names = ", ".join(run.name for run in runs)
    return Report(f"Report of {names}", _verdict(runs, newest, bool(missing)), sections, None, footer, maker)


def _told(runs: Sequence[Reported], faults: list[str]) -> tuple[dict[str, list[Shown]], dict[str, list[Shown]]]:
    """By kind: the newest measurement of each run and question, and the earlier ones; newest first in each run."""
    newest: dict[str, list[Shown]] = {}
    earlier: dict[str, list[Shown]] = {}
    for run in runs:
        answered = set()
        for evaluation in reversed(run.evaluations):
            try:
                found = shown(run, evaluation)
            except ConfigError as error:
                faults.append(str(error))
                continue
            question = (kind_of(evaluation), found.asked)
            (earlier if question in answered else newest).setdefault(question[0], []).append(found)
            answered.add(question)
    return newest, earlier


def _title(kind: str) -> str:
    return kind[:1].upper() + kind[1:].replace("_", " ")


def _verdict(runs: Sequence[Reported], newest: Mapping[str, Sequence[Shown]], missing: bool) -> str:
    count = sum(map(len, newest.values()))
    if not count:
        return f"{_counted(len(runs), 'run')}, nothing measured yet."
    rest = " What is missing stands at the end, with the command that measures it." if missing else ""
    return f"{_counted(len(runs), 'run')}, {_counted(count, 'measurement')} of {_counted(len(newest), 'kind')}.{rest}"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _runs(runs: Sequence[Reported], faults: Sequence[str]) -> list[Block]:
    head = [
        "run",
        "images",
        "size",
        "tokens",
        "codebooks",
        "tokenizer, steps × batch",
        "prior, steps × batch",
        "recipe",
    ]
    blocks: list[Block] = [Table(head, [_run_row(run) for run in runs], labels=len(head), sortable=True)]
    if faults:
        blocks.append(Points([f"{fault[:1].upper()}{fault[1:].rstrip('.')}." for fault in faults], "Left out"))
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(run.settings.get(name, "–") for run in runs)] for name in names]
    head = ["setting", *(run.name for run in runs)]
    apart = [row for row in rows if len(set(row[1:])) > 1]
    if apart:
        blocks.append(Table(head, apart, "Settings in which the runs differ.", labels=len(head), sortable=True))
    folded: list[Block] = [Table(head, rows, labels=len(head), sortable=True)]
    return [*blocks, Fold(f"All settings ({len(rows)})", folded)] if rows else blocks


def _run_row(run: Reported) -> list[str]:
    def setting(name: str) -> str:
        return run.settings.get(f"tokenizer.{name}", "–")

    cells = [run.name, run.data or "–", setting("image_size").replace(", ", " × ")]
    steps = ["–", "–"]
    if run.config is not None:
        tokenizer, prior = run.config.tokenizer_training, run.config.prior_training
        steps = [f"{stage.steps} × {stage.batch}" for stage in (tokenizer, prior)]
        sizes = run.config.tokenizer
        unused = " (unused)" if sizes.prologue_tokens and not run.config.prior.prologue else ""
        cells += [f"{sizes.prologue_tokens}{unused} + {sizes.visual_tokens}"]
    else:
        cells += [f"{setting('prologue_tokens')} + visual"]
    cells += [f"{setting('prologue_codebook_size')} + {setting('codebook_size')}", *steps]
    if run.manifest is None:
        return [*cells, "not finished"]
    recipe = run.manifest.recipe
    return [*cells, "none stored" if recipe is None else recipe_words(recipe.to_dict())]


def _kind(
    kind: str, newest: Sequence[Shown], earlier: Sequence[Shown], runs: Sequence[Reported], faults: list[str]
) -> list[Block]:
    unknown = "this version does not know this kind, so its figures stand as they were written"
    words = KINDS.get(kind, "" if is_known(kind) else unknown)
    blocks: list[Block] = [Text(f"{words[:1].upper()}{words[1:]}.")] if words else []
    names = _columns(newest, len(runs) > 1)
    blocks.append(_table(newest, names))
    single = len(newest) == 1
    blocks += _sentences(newest, names)
    blocks += _pictures(kind, newest, names, faults)
    blocks.append(_commands(newest, names, single))
    if earlier:
        times = [f"{each.run.name}\n{each.time}" + "".join(f"\n{option}" for option in each.asked) for each in earlier]
        inner: list[Block] = [_table(earlier, times), _commands(earlier, times, False)]
        if any(each.evaluation.pictures for each in earlier):
            inner.append(Text("Their pictures lie beside their figures, in the run's folder evaluations/."))
        blocks.append(Fold(f"Earlier measurements ({len(earlier)})", inner))
    return blocks


def _with(each: Sequence[Shown], names: Sequence[str]) -> Iterator[tuple[Shown, str]]:
    return zip(each, names, strict=True)


def _line(name: str) -> str:
    return name.replace("\n", " · ")


def _columns(measured: Sequence[Shown], several: bool) -> list[str]:
    """The run, and the options that not all of them have; those alone where there is one run."""
    common = set.intersection(*(set(each.asked) for each in measured))
    names = []
    for each in measured:
        own = " ".join(option for option in each.asked if option not in common)
        names.append("\n".join(filter(None, [each.run.name if several or not own else "", own])))
    return names


def _table(measured: Sequence[Shown], names: Sequence[str]) -> Table:
    """One row for each measure of any of them; equal labels in one measurement are told apart by their order."""
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for column, each in enumerate(measured):
        times: dict[str, int] = {}
        for label, figure, interval in each.rows:
            times[label] = times.get(label, 0) + 1
            cells.setdefault((label, times[label]), {})[column] = figure + (f"\n{interval}" if interval else "")
    rows = []
    for (label, _), found in cells.items():
        indent = _INDENT * ((len(label) - len(label.lstrip())) // 2)
        rows.append([indent + label.strip(), *(found.get(column, "–") for column in range(len(measured)))])
    caption = "Small figures are 95 % intervals." if any("\n" in cell for row in rows for cell in row) else ""
    return Table(["measure", *names], rows, caption, sortable=True)


def _sentences(measured: Sequence[Shown], names: Sequence[str]) -> Iterator[Block]:
    """What holds for all of them once, then the rest under their names."""
    common = [words for words in measured[0].sentences if all(words in each.sentences for each in measured)]
    if common:
        yield Points(common)
    for each, name in _with(measured, names):
        own = [words for words in each.sentences if words not in common]
        if own:
            yield Points(own, _line(name))


def _pictures(kind: str, measured: Sequence[Shown], names: Sequence[str], faults: list[str]) -> Iterator[Block]:
    """Those of ordinary width side by side, wide ones alone."""
    found = []
    for number, (each, name) in enumerate(_with(measured, names)):
        for title, file in each.evaluation.pictures.items():
            try:
                image = _smaller(file)
            except (OSError, ValueError) as error:
                faults.append(f"{file} is not a readable picture: {error}")
                continue
            words = title.replace("-", " ").replace("_", " ")
            of = each.run.name if len(measured) == 1 else _line(name)
            alt, caption = f"{_title(kind)} of {of}: {words}", f"{words[:1].upper()}{words[1:]}, {of}."
            found.append(Picture(f"{kind}-{number}-{title}", image, alt, caption, image.width >= _WIDE))
    narrow = [picture for picture in found if not picture.wide]
    if narrow:
        yield Gallery(narrow)
    yield from (picture for picture in found if picture.wide)


def _smaller(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        picture = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGBA")
        if picture.width > WIDEST or picture.height > TALLEST:
            picture.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
        return picture.copy()


def _commands(measured: Sequence[Shown], names: Sequence[str], single: bool) -> Commands:
    return Commands(
        [
            (each.command, each.origin[:1].upper() + each.origin[1:] if single else f"{_line(name)}, {each.origin}")
            for each, name in _with(measured, names)
        ]
    )


def _training(runs: Sequence[Reported]) -> list[Block]:
    trained = [Trained(run.name, run.config, run.metrics) for run in runs if run.config is not None and run.metrics]
    pictures = training_curves(trained)
    return [Text(EXPLAINED), Gallery(pictures)] if pictures else []


def _missing(runs: Sequence[Reported], newest: Mapping[str, Sequence[Shown]]) -> list[Block]:
    """The command for each kind that this version measures and a run lacks."""
    lines = []
    for kind in sorted(KINDS, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER)):
        measured = {each.run.name for each in newest.get(kind, ())}
        for run in runs:
            if run.name not in measured:
                whose = f", {run.name}" if len(runs) > 1 else ""
                command = f"prologue evaluate {kind} {in_shell(run.path)} {example(kind)}".rstrip()
                lines.append((command, f"{_title(kind)}{whose}: {KINDS[kind]}."))
    return [Commands(lines)] if lines else []
