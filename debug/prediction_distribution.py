"""How predictions are spread, next to the truth: do they collapse to one value, or avoid the extremes?

python debug/prediction_distribution.py RUN [--split val|test|oof] [--column NAME] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

BINS, WIDTH = 12, 30
SPLITS = ("val", "test", "oof")  # oof: of all samples, each by the fold that held it out
ANSWERS = ("actual", "predicted")


def numbers(table: pd.DataFrame) -> str:
    """Summary and histogram of a regression."""
    actual, predicted = table["actual"].to_numpy(dtype=float), table["predicted"].to_numpy(dtype=float)
    lines = [f"{'':10}{'min':>10}{'5%':>10}{'median':>10}{'95%':>10}{'max':>10}{'sd':>10}"]
    for name, values in (("actual", actual), ("predicted", predicted)):
        cells = [*np.quantile(values, [0, 0.05, 0.5, 0.95, 1]), values.std()]
        lines.append(f"{name:10}" + "".join(f"{cell:10.4g}" for cell in cells))
    spread = predicted.std() / actual.std() if actual.std() else float("nan")
    lines.append(f"\nspread of predictions over that of the truth: {spread:.2f}")
    if spread < 0.1:
        lines.append("Predictions are nearly constant: nothing was learnt. Try more epochs or another --lr.")
    edges = np.histogram_bin_edges(np.concatenate([actual, predicted]), BINS)
    lines.append(f"\n{'from':>10}  {'actual':{WIDTH}}  predicted")
    heights = [np.histogram(values, edges)[0] for values in (actual, predicted)]
    most = max(int(height.max()) for height in heights)
    for low, *row in zip(edges, *heights, strict=False):
        bars = ["#" * round(WIDTH * count / most) for count in row]
        lines.append(f"{low:10.4g}  {bars[0]:{WIDTH}}  {bars[1]}")
    return "\n".join(lines)


def classes(table: pd.DataFrame) -> str:
    """How often each class is true and is predicted, and how sure the model is."""
    names = sorted({*table["actual"], *table["predicted"]})
    surest = table.filter(like="prob_").max(axis=1)
    lines = [f"{'class':20}{'actual':>10}{'predicted':>10}"]
    lines += [f"{name:20}{(table['actual'] == name).sum():10}{(table['predicted'] == name).sum():10}" for name in names]
    lines.append(f"\nhighest probability of a sample: median {surest.median():.3f}, least {surest.min():.3f}")
    if table["predicted"].nunique() == 1:
        lines.append("One class is predicted for every sample. Try --class-weights balanced, or more epochs.")
    return "\n".join(lines)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw both distributions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.hist([table["actual"], table["predicted"]], bins=BINS, label=["actual", "predicted"])
    axes.set_ylabel("samples")
    axes.legend()
    figure.savefig(path, dpi=150)


def read(path: Path, column: str | None) -> pd.DataFrame:
    """The samples whose answer is known: ``actual``, ``predicted``, and ``prob_…`` of classes."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    several = [name.removesuffix("_actual") for name in table.columns if name.endswith("_actual")]
    if several:
        if column not in several:
            raise SystemExit(f"Error: {path}: holds {' and '.join(several)}; give one of them as --column")
        own = [name for name in table.columns if name.startswith(f"{column}_")]
        table = table[own].rename(columns=lambda name: name.removeprefix(f"{column}_"))
    known = table[table["actual"] != ""]
    is_class = any(name.startswith("prob_") for name in table.columns)
    numeric = [name for name in table.columns if name.startswith("prob_") or (not is_class and name in ANSWERS)]
    return known.astype(dict.fromkeys(numeric, float))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run directory of `aam train`")
    parser.add_argument("--split", choices=SPLITS, help="[the first of these that the run has]")
    parser.add_argument("--column", help="of a run that predicts several")
    parser.add_argument("--plot", type=Path, help="picture to write")
    arguments = parser.parse_args()
    splits = SPLITS if arguments.split is None else (arguments.split,)
    paths = [arguments.run / f"{split}_predictions.tsv" for split in splits]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise SystemExit(f"Error: {paths[0]}: no such file; give a finished run of `aam train`")
    table = read(path, arguments.column)
    print(f"{path}: {len(table)} samples\n")
    print(numbers(table) if table["actual"].dtype == float else classes(table))
    if arguments.plot is not None:
        plot(table, arguments.plot)
        print(f"\n{arguments.plot}")


if __name__ == "__main__":
    main()
