"""Every experiment in its smallest size, on a device that is as strict as a graphics card

`test_pretend.py` runs the defaults. The variants take minutes: `pytest tests/pretend_experiments.py` from the project's root.
"""
import json
import shutil
from pathlib import Path

import matplotlib
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from pretend_device import NAME, pretend

from refine_nb.parameters import code_cells, read_parameters

matplotlib.use("Agg")
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
CHOICE = '"cuda" if torch.cuda.is_available() else "cpu"'
VARIANTS = {  # beside the defaults: parameters that lead through other code
    "10_candidates_pay": [dict(task="s5", estimator="exact", group=0)],
    "10_context_collapse": [dict(estimator="exact")],
    "10_guided_grpo": [dict(form="rollouts", length=3, estimator="uniform", scale="group", partial=0.2, beta=0.005,
                            kl_estimator="k3", ratio=0.5), dict(form="supervised")],
    "11_trm_refinement": [dict(data="pointers", halting=True, detach=True, reward="none", average=0.9),
                          dict(data="noise"), dict(method="plain", reward="none", n_supervision=1, data="sudoku")],
    "12_confidence_lookahead": [dict(form="last", detach=False, clip=0.0), dict(data="arithmetic", target="teacher"),
                                dict(form="twin", budget="compute")],
    "13_mugrokfast_parts": [dict(data="reward", muon=True, grokfast_lambda=0.1, qk_clip=25.0), dict(data="text")],
    "14_quiet_text": [dict(method="plain"), dict(where="predicted", count=2, mixing="attention")],
    "16_longer_problems": [dict(rewarded="longer")],
    "16_thought_rl": [dict(method="naive", kl_to="no_thought"), dict(method="expert"), dict(warm="direct", method="supervised")],
}
RUNS = [(path.stem, more) for path in sorted(EXPERIMENTS.glob("*.ipynb")) for more in ({}, *VARIANTS.get(path.stem, ()))]


@pytest.mark.parametrize("name, more", RUNS, ids=[f"{name} {' '.join(more) or 'default'}" for name, more in RUNS])
def test_an_experiment_runs_on_the_device(name, more, tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    notebook = Path(shutil.copy(EXPERIMENTS / f"{name}.ipynb", tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    known = read_parameters(notebook).types
    given = {n: v for n, v in dict(preset="smoke", corpus="pydocs" if name == "14_quiet_text" else "markov").items() if n in known} | more
    space, chosen = {"display": lambda *shown: [str(x) for x in shown]}, 0
    with pretend() as seen:
        for source, tags in code_cells(notebook):
            chosen += CHOICE in source
            text = TransformerManager().transform_cell(source.replace(CHOICE, repr(NAME)))
            exec(compile(text, f"{name}.ipynb", "exec"), space)
            if "parameters" in tags: space.update(given)
    assert seen.operations > 100 or name == "10_estimators_exact", "the device has done nothing"
    assert chosen or name == "10_estimators_exact"
    [record] = (tmp_path / "runs").glob("*/run.json")
    assert json.loads(record.read_text())["status"] == "ok"
