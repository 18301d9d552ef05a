"""``aam check``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from aam.cli.options import STUDY_OPTIONS, study_options, usage_errors
from aam.cli.report import table

__all__ = ["command"]

_MOST_CLASSES = 8
_WIDEST_NAME = 30


@click.command("check")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(as_json: bool, **typed: Any) -> None:
    """Read the inputs as `aam train` would and say what was found, or every problem at once.

    Exits with 0 if there is no problem, else with 1.
    """
    from aam.check import check
    from aam.config import DataConfig, ModelConfig, TaskConfig

    given = {name: value for name, value in typed.items() if value not in (None, ())}
    if "table" not in given:
        raise click.UsageError("Missing option '--table'.")
    of_section = {
        section: {name: given[name] for name in names if name in given} for section, names in STUDY_OPTIONS.items()
    }
    with usage_errors():
        data, model = DataConfig(**of_section["data"]), ModelConfig(**of_section["model"])
        task = TaskConfig(**of_section["task"])
    report = check(data, model=model, task=task, **of_section["train"])
    click.echo(json.dumps(report, indent=2) if as_json else _page(report))
    sys.exit(1 if report["problems"] else 0)


def _page(report: dict[str, Any]) -> str:
    parts = {
        "samples": _samples,
        "overlap": _overlap,
        "studies": _studies,
        "asvs": _asvs,
        "asvs_per_sample": _token_limit,
        "distances": _distances,
        "target": _target,
        "covariates": _covariates,
        "split": _split,
        "estimate": _estimate,
    }
    lines = []
    for name, describe in parts.items():
        if report.get(name) is not None:
            label = {"asvs": "ASVs", "asvs_per_sample": "token limit"}.get(name, name)
            for text in describe(report):
                lines.append(f"{label:<12}{text}")
                label = ""
    spread = _quantiles(report)
    lines += ["", *spread, ""] if spread else []
    lines += [f"Warning: {text}" for text in report["warnings"]]
    lines += [f"Problem: {text}" for text in report["problems"]]
    return "\n".join([*lines, "" if report["problems"] else "No problem found."]).strip()


def _samples(report: dict[str, Any]) -> list[str]:
    samples = report["samples"]
    left_out = [f"{number:,} left out: {reason}" for reason, number in samples["left_out"].items()]
    return [f"{samples['used']:,} of {samples['table']:,} are used", *left_out]


def _overlap(report: dict[str, Any]) -> list[str]:
    overlap = report["overlap"]
    if not overlap["files"]:
        return []
    lines = [f"{overlap['all']:,} samples are in every file, {overlap['table']:,} in the table"]
    for name, file in overlap["files"].items():
        text = f"{name} has {file['samples']:,}"
        if file["lacks"]:
            text += f", lacks {file['lacks']:,} of the table ({_for_example(file, 'lacks')})"
        if file["not_in_table"]:
            text += f", has {file['not_in_table']:,} that the table lacks ({_for_example(file, 'not_in_table')})"
        if file["lacks"] or file["not_in_table"]:
            lines.append(text)
    return lines


def _for_example(file: dict[str, Any], which: str) -> str:
    names = [name if len(name) <= 30 else f"{name[:29]}…" for name in file[f"{which}_for_example"][:2]]
    return ", ".join(names) + (", …" if file[which] > len(names) else "")


def _studies(report: dict[str, Any]) -> list[str]:
    return [", ".join(f"{name} {number:,}" for name, number in report["studies"].items()) + " of the samples used"]


def _asvs(report: dict[str, Any]) -> list[str]:
    asvs, lengths = report["asvs"], report["lengths"]
    text = f"{asvs['count']:,}, {asvs['length_min']:,} to {asvs['length_max']:,} bases"
    if lengths is not None and lengths["other_letters"]:
        text += f"; {lengths['with_other_letters']:,} hold N and the like ({lengths['other_letters']:,} letters)"
    return [text]


def _token_limit(report: dict[str, Any]) -> list[str]:
    found = report["asvs_per_sample"]
    limit = f"--token-limit {found['token_limit']}"
    if not found["over_limit"]:
        return [f"no sample has more ASVs than {limit}"]
    of = f"{found['over_limit']:,} of {found['samples']:,} samples have more ASVs than {limit}"
    return [f"{of}: {found['reads_lost']:.2%} of all reads are not read"]


def _distances(report: dict[str, Any]) -> list[str]:
    distances = report["distances"]
    references = "" if distances["references"] is None else f" to {distances['references']:,} references"
    text = f"{distances['samples']:,} samples{references}, mean {distances['mean']:.3f}"
    return [f"{text}, largest {distances['max']:.3f}"]


def _target(report: dict[str, Any]) -> list[str]:
    return [_column(target) for target in _targets(report)]


def _targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One, or several."""
    found = report["target"]
    return found if isinstance(found, list) else [] if found is None else [found]


def _column(target: dict[str, Any]) -> str:
    unknown = f"; {target['unknown']:,} unknown" if target.get("unknown") else ""
    if "classes" not in target:
        return f"{target['column']}, a number: median {target['median']:.4g}{unknown}"
    sizes = sorted(target["classes"].items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} {number:,}" for name, number in sizes[:_MOST_CLASSES])
    more = f", and {len(sizes) - _MOST_CLASSES} classes more" if len(sizes) > _MOST_CLASSES else ""
    return f"{target['column']}, {len(sizes)} classes: {shown}{more}{unknown}"


def _covariates(report: dict[str, Any]) -> list[str]:
    lines = []
    for column, found in report["covariates"]["columns"].items():
        what = (
            f"{len(found['classes'])} categories" if "classes" in found else f"a number: median {found['median']:.4g}"
        )
        lines.append(f"{column}, {what}")
    return [*lines, *report["covariates"]["unknown"]]


def _split(report: dict[str, Any]) -> list[str]:
    split, groups = report["split"], report["split"]["groups"]
    names = {"train": "to learn from", "val": "for validation", "test": "for the test"}
    sizes = [
        f"{split[part]:,} {name}"
        + ("" if groups is None else f" ({groups[part]:,} group{'s' if groups[part] != 1 else ''})")
        for part, name in names.items()
        if split[part]
    ]
    if split["folds"] is None:
        return [", ".join(sizes), *split["notes"]]
    folds = split["folds"]
    held_out = f"{min(folds):,}" if min(folds) == max(folds) else f"{min(folds):,} to {max(folds):,}"
    return [f"{len(folds)} folds of {held_out} samples, of which the first has", ", ".join(sizes)]


def _estimate(report: dict[str, Any]) -> list[str]:
    found = report["estimate"]
    batch = found["batch"]
    whole = found["runs"] * found["epochs"] * found["steps_per_epoch"] * found["step_seconds"]
    rest = ", later ones quicker" if found["seconds"] < 0.9 * whole else ""
    runs = f" for {found['runs']} folds" if found["runs"] > 1 else ""
    steps = f"{found['steps_per_epoch']:,} steps of {_duration(found['step_seconds'])} each"
    search = (
        ["a quarter of that to twice as long again, to find out whether the signal is weak"]
        if found["searches"]
        else []
    )
    return [
        f"about {_duration(found['seconds'])}{runs} on this machine's processor: {found['epochs']:,} epochs of {steps}"
        f"{rest}",
        *search,
        f"about {found['memory_bytes'] / 1e9:.1f} GB of memory: {found['parameters'] / 1e6:.1f} million weights; "
        f"a batch of {batch['samples']:,} samples has {batch['distinct_asvs']:,} ASVs",
    ]


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {name}" if seconds >= 10 * unit else f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _quantiles(report: dict[str, Any]) -> list[str]:
    """A row for each of what samples and ASVs differ in."""
    rows = {
        "reads of a sample": report["depth"],
        "ASVs of a sample": report["asvs_per_sample"],
        "bases of an ASV": report["lengths"],
    }
    known = {name: found for name, found in rows.items() if found is not None}
    columns = {"min": "least", "q5": "5%", "q25": "25%", "median": "median", "q75": "75%", "q95": "95%", "max": "most"}
    body = [(name, *(_number(round(found[key])) for key in columns)) for name, found in known.items()]
    for target in _targets(report):
        if "min" in target:
            body.append((_shortened(target["column"]), *(_number(target[key]) for key in columns)))
    return table([("", *columns.values()), *body]).splitlines() if body else []


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST_NAME else f"{text[: _WIDEST_NAME - 1]}…"


def _number(value: float) -> str:
    plain = abs(value) < 1e9 and (abs(value) >= 1000 or value == int(value))
    return f"{value:,.0f}" if plain else f"{value:.4g}"
