"""Weights & Biases as a callback of `refine_nb.train.train` (extra `wandb`), offline unless asked otherwise.

    with WandbLog(config=run.params, folder=folder) as log:
        result = run_reinforcement(folder, baked, task, thoughts, callbacks=(log,))
        log.artifact(folder / "model.safetensors", "thinker")

Rows keep their names; what is not a number is left out. `wandb sync` sends an offline run when its owner wants it.
"""

from collections.abc import Mapping
from pathlib import Path


class WandbLog:
    "Sends every row of a training run to Weights & Biases; raises `ImportError` where it is not installed"

    def __init__(
        self,
        project: str = "refine_nb",
        config: Mapping[str, object] | None = None,  # parameters of the run
        folder: str | Path = ".",  # gets the folder `wandb`
        mode: str = "offline",  # or "online", "disabled"
        prefix: str = "rl/",  # before names that have none
        **settings,  # of `wandb.init`
    ):
        try: import wandb
        except ImportError as e:
            raise ImportError("Weights & Biases is not installed: pip install 'refine_nb[wandb]'") from e
        self.wandb, self.prefix = wandb, prefix
        self.run = wandb.init(project=project, config=dict(config or {}), dir=str(folder), mode=mode, **settings)

    def __call__(self, row: Mapping[str, object]) -> None:
        "One row of the log"
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        self.run.log({k if "/" in k or k.startswith("val_") else self.prefix + k: v for k, v in numbers.items()},
                     step=row["step"])

    def artifact(
        self,
        path: str | Path,  # a saved model, a file or a folder
        name: str,
    ) -> None:
        "Keep a saved model with the run"
        if not Path(path).exists(): raise FileNotFoundError(f"{path} does not exist: save the model there first")
        artifact = self.wandb.Artifact(name, type="model")
        (artifact.add_dir if Path(path).is_dir() else artifact.add_file)(str(path))
        self.run.log_artifact(artifact)

    def __enter__(self): return self

    def __exit__(self, kind, error, tb) -> None: self.run.finish(exit_code=int(kind is not None))
