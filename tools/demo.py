"""`make demo`: run the demonstration sweep, draw its table and figure, say where everything is"""
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pandas as pd

from refine_nb.plots import source_limits, plot_by_corpus, arm_names, summary_table, theme
from refine_nb.tables import read_runs

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build/demo"
METRIC = "late_loss"
matplotlib.use("Agg")  # no display needed


def pointer_table(runs: pd.DataFrame) -> pd.DataFrame:
    "One row a corpus and setting; the corpus is named after the text that was read, not `auto`"
    groups = {name: group.assign(setting=arm_names(group)) for name, group in runs.groupby("corpus_name", sort=False)}
    return pd.concat({name: summary_table(group, "setting", METRIC) for name, group in groups.items()}, names=["corpus"]).reset_index()


def main() -> int:
    "Sweep, then table and figure, then the list of what was made"
    start = time.time()
    shutil.rmtree(HOME / "results", ignore_errors=True)  # tables of an older version; finished runs of this one are in runs/ and are not repeated
    command = [Path(sys.executable).parent / "refine-nb", "sweep", ROOT / "experiments/sweeps/demo.yaml", "--results", HOME / "results", "--runs", HOME / "runs"]
    ended = subprocess.run(command, cwd=ROOT).returncode
    if ended: return ended
    runs = read_runs(HOME / "results/demo")
    table = pointer_table(runs)
    table.to_csv(HOME / "table.csv", index=False)
    theme()
    plot_by_corpus(runs, METRIC, source_limits(runs)).savefig(HOME / "figure.png")
    print(f"\n{table.round(4).to_string(index=False, na_rep='-')}\n\n{METRIC}: nats per character on held-out text, for characters with at least three before them; n random seeds; low and high: 95 % Student interval")
    for what, path in {"table": "table.csv", "figure": "figure.png", "notebooks": "runs/*/executed.ipynb", "all runs": "results/demo/runs.csv"}.items():
        print(f"{what:>10}: {(HOME / path).relative_to(ROOT)}")
    print(f"{time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
