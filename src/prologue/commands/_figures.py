"""The tables of `prologue evaluate`, and the sentences that say what a figure is worth."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from prologue.evaluation.runs import DISTANCE_IMAGES, LIKELIHOOD_IMAGES, Record

Row = tuple[str, str, str]
"""A measure, its figure, its 95 % interval."""


def show(record: Record, run: str) -> None:
    """Print a record of any kind as a table, and below it what has to be known to read it."""
    lines = {"reconstruction": _reconstruction, "generation": _generation, "likelihood": _likelihood}[record["kind"]]
    table = Table("measure", "figure", "95 % interval", title=f"{record['kind']} of {run}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in lines(record):
        table.add_row(*row)
    Console().print(table)
    for sentence in notes(record):
        print(sentence)


def notes(record: Record) -> Iterator[str]:
    """The sentences below the table: N, marks, and what was noticed."""
    if record["kind"] == "generation":
        against = f" against {record['n_reference']} training images (center crops)" if record["n_reference"] else ""
        yield f"N = {record['n']} samples, labels uniform over the classes{against}."
        yield f"Recipe: {_recipe(record['recipe'])}."
    else:
        yield f"N = {record['n']} {'held-out' if record['split'] == 'validation' else 'training'} images."
    if record.get("fd") is not None and record["indicative"]:
        yield (
            f"Indicative: with fewer than {DISTANCE_IMAGES} images on a side {record['fd_name']} depends on their "
            f"number; {record['kid_name']} leads. Compare at the same N only."
        )
    if record["kind"] == "likelihood" and record["indicative"]:
        yield f"Indicative: fewer than {LIKELIHOOD_IMAGES} images."
    if record.get("trained_on_features"):
        yield f"The tokenizer trained on these features ({record['features']}): the distances flatter this run."
    if record.get("reason") is not None:
        yield f"No distance: {record['reason']}."
    for sentence in record["notes"]:
        yield f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."


def _reconstruction(record: Record) -> Iterator[Row]:
    yield _row("PSNR, dB", record, "psnr", ".2f")
    yield _row("SSIM", record, "ssim", ".4f")
    yield from _distances(record)
    size = record["visual_codebook_size"]
    yield "visual codes in use", f"{record['visual_usage']:.1%} of {size}", ""
    yield "perplexity of the visual codes", f"{record['visual_perplexity']:.1f}", ""


def _generation(record: Record) -> Iterator[Row]:
    yield from _distances(record)
    recognition = record["recognition"]
    if recognition is not None:
        yield _row("classifier recognises the asked class", recognition, "rate", ".1%")
        for row in recognition["by_class"]:
            yield _row(f"  {row['class']}", row, "rate", ".1%")


def _distances(record: Record) -> Iterator[Row]:
    """The leading distance first."""
    if record["fd"] is None:
        return
    mark = " (trained on)" if record["trained_on_features"] else ""
    kid = _row(record["kid_name"] + mark, record, "kid", ".4g")
    fd = (record["fd_name"] + mark + (", indicative" if record["indicative"] else ""), f"{record['fd']:.4g}", "")
    yield from (kid, fd) if record["leads"] == "kid" else (fd, kid)


def _recipe(recipe: Record) -> str:
    """The recipe in the words of its flags, those that are set."""
    guidance = recipe["guidance"]
    if guidance["whole"] is not None:
        words = [f"guidance overall:{_schedule(guidance['whole'])}"]
    elif guidance["prologue"] is not None and guidance["visual"] is not None:
        words = [f"guidance split:{_schedule(guidance['prologue'])},{_schedule(guidance['visual'])}"]
    else:
        words = ["no guidance"]
    names = ("temperature", "prologue_temperature", "top_k", "top_p")
    words += [f"{name.replace('_', '-')} {recipe[name]:g}" for name in names if recipe[name] is not None]
    return ", ".join(words)


def _schedule(schedule: Record) -> str:
    return f"{schedule['kind']}:{schedule['scale']:g}:{schedule['power']:g}"


def _likelihood(record: Record) -> Iterator[Row]:
    yield _row("nats per image", record, "nats", ".2f")
    yield _row("bits per image", record, "bits", ".2f")
    yield _row("token bits per dimension", record, "token_bits_per_dimension", ".5f")
    for name, label in (("prologue", "prologue"), ("eos", "EOS"), ("visual", "visual")):
        yield _row(f"  {label}, nats", record, f"{name}_nats", ".2f")
        yield _row(f"  {label}, bits", record, f"{name}_bits", ".2f")
    yield "entropy of the visual ids, nats per image", f"{record['visual_entropy']:.2f}", ""
    yield "entropy of the visual ids, nats per token", f"{record['visual_entropy_per_token']:.3f}", ""
    if record["cost"] is None:
        return
    yield _row("prologue: cost, nats", record, "cost", ".2f")
    yield "prologue: diversity, nats", f"{record['diversity']:.2f}", ""
    if record["use"] is not None:
        yield _row("prologue: use, nats", record, "use", ".2f")
    if record["gain"] is not None:
        yield _row("prologue: gain, nats", record, "gain", ".2f")
        yield _row("baseline: visual, nats", record, "baseline_visual_nats", ".2f")


def _row(label: str, record: Record, name: str, style: str) -> Row:
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    interval = "" if low is None else f"{low:{style}} … {high:{style}}"
    return label, f"{record[name]:{style}}", interval
