"Every kind of model in one file, and back. The page `29_use` shows `save` and `load`."
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._errors import unknown_name
from ._tokens import TokenVocab
from .checkpoints import BadCheckpoint, fill_model, read_model_file, save_model_file
from .confidence import ConfidenceAwareGPT, standard_twin
from .data import CharVocab
from .gpt import PRECISIONS, ContextualGPT, GPTConfig, Linear, set_precision
from .quiet_star import QuietConfig, QuietGPT
from .trigram import NGram
from .trm import NormedGPT, RecursiveGPT, TRMConfig
from .warm_start import _plain, load_thinking_model, save_thinking_model


class _Family(NamedTuple):
    "How a kind of model is built again"

    config: type  # of its `cfg`
    build: Callable  # configuration and further arguments → model
    arguments: tuple[str, ...] = ()  # attributes of a model that `build` takes


_FAMILIES = {
    "gpt": _Family(GPTConfig, ContextualGPT),
    "twin": _Family(GPTConfig, standard_twin),
    "normed": _Family(GPTConfig, NormedGPT),
    "recursive": _Family(TRMConfig, RecursiveGPT),
    "confidence": _Family(GPTConfig, ConfidenceAwareGPT, ("feedback",)),
    "quiet": _Family(QuietConfig, QuietGPT),
}


def family_of(
    model: nn.Module,
) -> str:
    "The name of a model's kind; raises `TypeError` for a class of another library or of the user's own"
    if type(model) is NGram: return "counts"
    if type(model) is ContextualGPT and hasattr(model, "thoughts"): return "thinking"
    if type(model) is ContextualGPT and any(b.up.out_features != 4 * model.cfg.width for b in model.blocks):
        return "twin"
    for name, family in _FAMILIES.items():
        if type(model) is family.build: return name
    known = ", ".join(["NGram", *(f.build.__name__ for f in _FAMILIES.values() if isinstance(f.build, type))])
    raise TypeError(f"a {type(model).__name__} is no model of this book (there are {known}): "
                    "keep it with torch.save, or as its state_dict")


def save(
    file: str | Path,  # ends in .safetensors
    model: nn.Module,
    vocab: CharVocab | TokenVocab | None = None,  # what its ids mean; by default the model's own `vocab`
) -> Path:
    "Write a model with vocabulary and configuration into one file, whole or not at all; `load(file)` is the way back"
    model = getattr(model, "_orig_mod", model)  # of a compiled one
    family, vocab = family_of(model), vocab or getattr(model, "vocab", None)
    if family == "thinking": return save_thinking_model(file, model, model.task, model.thoughts)
    if vocab is None:
        raise ValueError(f"what do the ids of this {type(model).__name__} mean? Give save(file, model, vocab)")
    n_symbols = model.n_symbols if family == "counts" else model.cfg.n_symbols
    if len(vocab) != n_symbols:
        raise ValueError(
            f"the vocabulary has {len(vocab)} symbols and the model knows {n_symbols}: give the one it was built on"
        )
    settings = dict(vocab=_vocab_settings(vocab)) | ({} if family == "counts" else _settings(model, _FAMILIES[family]))
    if hasattr(model, "task"): settings["task"] = model.task
    return save_model_file(file, model, family, settings)


def load(
    file: str | Path,  # from `save`, or `model.safetensors` of a run's folder
) -> nn.Module:  # in evaluation mode, with its `vocab`; a thinking model also with its `task` and `thoughts`
    "A saved model of any kind; executes no code; raises `FileNotFoundError`, `BadCheckpoint` for other files"
    family, settings, tensors = read_model_file(file)
    if family == "thinking": return load_thinking_model(file)[0]
    if family not in (*_FAMILIES, "counts"):
        raise BadCheckpoint(f"{file}: {unknown_name('family of models', family, [*_FAMILIES, 'counts', 'thinking'])}")
    vocab = _vocab(settings["vocab"])
    model = _counts(tensors) if family == "counts" else _build(file, _FAMILIES[family], settings)
    fill_model(model, tensors, file)
    model.vocab = vocab
    if "task" in settings: model.task = _plain(settings["task"])
    return model


# Configurations


def _settings(model: nn.Module, family: _Family) -> dict:
    "What builds the model again"
    types = {m.compute_dtype for m in model.modules() if isinstance(m, Linear)}
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == max(types, key=str))
    arguments = {name: getattr(model, name) for name in family.arguments}
    return dict(config=asdict(model.cfg), arguments=arguments, precision=precision)


def _build(file: str | Path, family: _Family, settings: dict) -> nn.Module:
    "An untrained model; raises `BadCheckpoint` for settings that this version does not know"
    try: model = family.build(_dataclass(family.config, settings["config"]), **settings["arguments"])
    except (TypeError, ValueError) as why:
        raise BadCheckpoint(f"{file} holds settings that this version does not take ({why}): "
                            "read it with the version that wrote it") from why
    set_precision(model, settings["precision"])
    return model


def _dataclass(kind: type, values: dict) -> object:
    "A frozen configuration from JSON, configurations within it too"
    inner = {f.name: f.type for f in fields(kind) if is_dataclass(f.type)}
    return kind(**{name: _dataclass(inner[name], value) if name in inner else value for name, value in values.items()})


def _counts(tensors: dict[str, Tensor]) -> NGram:
    "Tables of the shapes that a file has"
    names = lambda kind: sorted((n for n in tensors if n.startswith(kind)), key=lambda n: int(n[len(kind):]))
    return NGram(*([torch.empty_like(tensors[n]) for n in names(kind)] for kind in ("child", "logp")))


# Vocabularies


def _vocab_settings(vocab: CharVocab | TokenVocab) -> dict:
    "A vocabulary as JSON has it"
    return (
        dict(tokenizer=vocab.json())
        if isinstance(vocab, TokenVocab)
        else dict(chars=vocab.chars, specials=list(vocab.specials))
    )


def _vocab(settings: dict) -> CharVocab | TokenVocab:
    "The vocabulary again"
    return (
        TokenVocab(settings["tokenizer"])
        if "tokenizer" in settings
        else CharVocab(settings["chars"], settings["specials"])
    )
