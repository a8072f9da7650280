"""The page of `prologue report`: runs side by side, with one section for each kind that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from prologue.errors import ConfigError
from prologue.evaluation.evaluations import file_name
from prologue.evaluation.kinds import KINDS, named_kind
from prologue.evaluation.reported import Reported, Shown, kind_named, kind_of
from prologue.report.curves import EXPLAINED, Trained, training_curves
from prologue.report.page import Block, Commands, Fold, Gallery, Picture, Points, Report, Section, Table, Text
from prologue.sampling.flags import recipe_words
from prologue.utils.files import in_shell

WIDEST, TALLEST = 1600, 3200
"""Largest picture in pixels; larger ones are resized."""
_WIDE = 1200
_INDENT = "\u2003"
_LAST = "reference"
"""Kind that writes a file; its section follows those of the other built-in kinds."""


def runs_report(runs: Sequence[Reported], footer: str, maker: str) -> Report:
    """The page. It names measurements that cannot be shown."""
    faults = [fault for run in runs for fault in run.faults]
    newest: dict[str, list[Shown]] = {}
    earlier: dict[str, list[Shown]] = {}
    for run in runs:
        answered = set()
        for evaluation in reversed(run.evaluations):
            try:
                found = Shown.of(run, evaluation)
            except ConfigError as error:
                faults.append(str(error))
                continue
            question = (kind_of(evaluation), found.asked)
            (earlier if question in answered else newest).setdefault(question[0], []).append(found)
            answered.add(question)
    known = _ordered()
    kinds = [*(kind for kind in known if kind in newest), *sorted(set(newest) - set(known))]
    sections = [Section(_title(kind), _kind(kind, newest[kind], earlier.get(kind, []), runs, faults)) for kind in kinds]
    missing = _missing(runs, newest)
    sections = [
        Section("Runs", _runs(runs, faults)),
        *sections,
        Section("Training", _training(runs)),
        Section("Not measured yet", missing),
    ]
    names = ", ".join(run.name for run in runs)
    return Report(f"Report of {names}", _verdict(len(runs), newest, bool(missing)), sections, None, footer, maker)


def _ordered() -> list[str]:
    """The known kinds in the order of their sections."""
    return sorted(KINDS, key=lambda kind: kind == _LAST)


def _title(kind: str) -> str:
    name = kind.rpartition(":")[2]
    return name[:1].upper() + name[1:].replace("_", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _verdict(runs: int, newest: dict[str, list[Shown]], missing: bool) -> str:
    count = sum(map(len, newest.values()))
    if not count:
        return f"{_counted(runs, 'run')}, nothing measured yet."
    rest = " The last section has the commands of missing measurements." if missing else ""
    return f"{_counted(runs, 'run')}, {_counted(count, 'measurement')} of {_counted(len(newest), 'kind')}.{rest}"


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
        blocks.append(Points([_sentence(fault) for fault in faults], "Not shown"))
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(run.settings.get(name, "–") for run in runs)] for name in names]
    head = ["setting", *(run.name for run in runs)]
    different = [row for row in rows if len(set(row[1:])) > 1]
    if different:
        blocks.append(Table(head, different, "Settings in which the runs differ.", labels=len(head), sortable=True))
    folded: list[Block] = [Table(head, rows, labels=len(head), sortable=True)]
    return [*blocks, Fold(f"All settings ({len(rows)})", folded)] if rows else blocks


def _run_row(run: Reported) -> list[str]:
    def setting(name: str) -> str:
        return run.settings.get(f"tokenizer.{name}", "–")

    tokens, steps = f"{setting('prologue_tokens')} + visual", ["–", "–"]
    if run.config is not None:
        stages, sizes = (run.config.tokenizer_training, run.config.prior_training), run.config.tokenizer
        steps = [f"{stage.steps} × {stage.batch}" for stage in stages]
        unused = " (unused)" if sizes.prologue_tokens and not run.config.prior.prologue else ""
        tokens = f"{sizes.prologue_tokens}{unused} + {sizes.visual_tokens}"
    recipe = "not finished"
    if run.manifest is not None:
        recipe = "none stored" if run.manifest.recipe is None else recipe_words(run.manifest.recipe.to_dict())
    codebooks = f"{setting('prologue_codebook_size')} + {setting('codebook_size')}"
    size = setting("image_size").replace(", ", " × ")
    return [run.name, run.data or "–", size, tokens, codebooks, *steps, recipe]


def _kind(
    kind: str, newest: Sequence[Shown], earlier: Sequence[Shown], runs: Sequence[Reported], faults: list[str]
) -> list[Block]:
    names = _columns(newest, len(runs) > 1)
    blocks: list[Block] = [
        Text(_sentence(kind_named(kind).summary)),
        _table(newest, names),
        *_sentences(newest, names),
        *_pictures(kind, newest, names, faults),
        _commands(newest, names if len(newest) > 1 else [""]),
    ]
    if earlier:
        times = ["\n".join([each.run.name, each.time, *each.asked]) for each in earlier]
        inner: list[Block] = [_table(earlier, times), _commands(earlier, times)]
        if any(each.evaluation.pictures for each in earlier):
            inner.append(Text("Their pictures are in the folder evaluations/ of the run."))
        blocks.append(Fold(f"Earlier measurements ({len(earlier)})", inner))
    return blocks


def _line(name: str) -> str:
    return name.replace("\n", " · ")


def _columns(measured: Sequence[Shown], several: bool) -> list[str]:
    """The run, and the options that differ; of a single run only the options, if there are any."""
    common = set.intersection(*(set(each.asked) for each in measured))
    names = []
    for each in measured:
        own = " ".join(option for option in each.asked if option not in common)
        names.append("\n".join(filter(None, [each.run.name if several or not own else "", own])))
    return names


def _table(measured: Sequence[Shown], names: Sequence[str]) -> Table:
    """One row for each label; equal labels of one measurement are told apart by their order."""
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
    """Common sentences once, then the others under the name of each measurement."""
    common = [words for words in measured[0].sentences if all(words in each.sentences for each in measured)]
    if common:
        yield Points(common)
    for each, name in zip(measured, names, strict=True):
        own = [words for words in each.sentences if words not in common]
        if own:
            yield Points(own, _line(name))


def _pictures(kind: str, measured: Sequence[Shown], names: Sequence[str], faults: list[str]) -> Iterator[Block]:
    """Narrow pictures side by side, then wide ones."""
    found = []
    for number, (each, name) in enumerate(zip(measured, names, strict=True)):
        for title, file in each.evaluation.pictures.items():
            try:
                image = _resized(file)
            except (OSError, ValueError) as error:
                faults.append(f"{file} is not a readable picture: {error}")
                continue
            words = title.replace("-", " ").replace("_", " ")
            of = each.run.name if len(measured) == 1 else _line(name)
            alt, caption = f"{_title(kind)} of {of}: {words}", f"{words[:1].upper()}{words[1:]}, {of}."
            name_of = f"{file_name(kind)}-{number}-{title}"
            found.append(Picture(name_of, image, alt, caption, image.width >= _WIDE))
    narrow = [picture for picture in found if not picture.wide]
    if narrow:
        yield Gallery(narrow)
    yield from (picture for picture in found if picture.wide)


def _resized(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        picture = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGBA")
        if picture.width > WIDEST or picture.height > TALLEST:
            picture.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
        return picture.copy()


def _commands(measured: Sequence[Shown], names: Sequence[str]) -> Commands:
    lines = []
    for each, name in zip(measured, names, strict=True):
        words = f"{_line(name)}, {each.origin}" if name else f"{each.origin[:1].upper()}{each.origin[1:]}"
        lines.append((each.command, words))
    return Commands(lines)


def _training(runs: Sequence[Reported]) -> list[Block]:
    trained = [Trained(run.name, run.config, run.metrics) for run in runs if run.config is not None and run.metrics]
    pictures = training_curves(trained)
    return [Text(EXPLAINED), Gallery(pictures)] if pictures else []


def _missing(runs: Sequence[Reported], newest: dict[str, list[Shown]]) -> list[Block]:
    """The commands of kinds that were not measured."""
    lines = []
    for name in _ordered():
        kind, measured = named_kind(name), {each.run.name for each in newest.get(name, ())}
        for run in runs:
            if run.name not in measured:
                whose = f", {run.name}" if len(runs) > 1 else ""
                command = f"prologue evaluate {name} {in_shell(run.path)} {kind.example}".rstrip()
                lines.append((command, f"{_title(name)}{whose}: {kind.summary}."))
    return [Commands(lines)] if lines else []
