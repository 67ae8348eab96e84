"One command for the published confidence experiment. The notebook `28_published` takes it to pieces."
from pathlib import Path

from .data import CharVocab, load_corpus, split_ids
from .gpt import GPTConfig
from .published import ConfidenceExperimentConfig, _summary, compare_models


def compare_on(
    text: str,               # a corpus by name, or a path
    steps: int,              # updates of each model
    seeds: tuple[int, ...],  # random seeds
    folder: Path,            # gets the file and its figure
) -> tuple[Path, str]:  # the JSON file; a table in words
    "Train on nine tenths of a text, judge on the last, and draw what the file says"
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    corpus = load_corpus(text)
    vocab = CharVocab.from_text(corpus.text)
    fit, held_out = split_ids(vocab.encode(corpus.text))
    cfg = ConfidenceExperimentConfig(training_steps=steps, seeds=seeds, results_dir=str(folder))
    results = compare_models(cfg, fit, GPTConfig(len(vocab), context=17, n_layers=2, n_heads=4, width=64), held_out)
    path = results.save(folder)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    results.plot(axes)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(figure)
    return path, _summary(results).round(3).to_string(index=False)
