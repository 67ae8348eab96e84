"""TensorBoard as a callback of training (extra `tensorboard`).

    with TensorBoardLog("build/tensorboard/first", config={"preset": "cpu"}) as log:
        model = fit(text, callbacks=(log,))

Rows keep their names; what is not a number is left out. `tensorboard --logdir build/tensorboard` shows the curves.
"""
from collections.abc import Mapping
from pathlib import Path


class TensorBoardLog:
    "Writes every row of a training run for TensorBoard; raises `ImportError` where it is not installed"

    def __init__(
        self,
        folder: str | Path,  # of this run; one beside the others of a comparison
        config: Mapping[str, object] | None = None,  # parameters of the run, shown as text
        prefix: str = "train/",  # before names that have none
    ):
        try: from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise ImportError("TensorBoard is not installed: pip install 'refine_nb[tensorboard]'") from e
        self.writer, self.prefix = SummaryWriter(str(folder)), prefix
        if config: self.writer.add_text("config", "\n".join(f"- {name}: {value}" for name, value in config.items()))

    def __call__(self, row: Mapping[str, object]) -> None:
        "One row of the log"
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float): continue
            named = name if "/" in name or name.startswith("val_") else self.prefix + name
            self.writer.add_scalar(named, value, row["step"])

    def __enter__(self): return self

    def __exit__(self, kind, error, tb) -> None: self.writer.close()
