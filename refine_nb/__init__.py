"A literate laboratory for small language models. `from refine_nb import …` has what one uses; see `29_use`."
__version__ = "0.1.0"

_ROOMS = {  # name → the module that has it, imported when the name is used
    "load_corpus": "data", "load_task": "benchmark_tasks",
    "fit": "use", "fit_task": "use", "fit_thinking": "use", "reinforce": "use",
    "generate": "use", "text_loss": "use", "foretell": "use", "think": "use", "refine": "use",
    "ask": "_ask", "ask_all": "_ask",
    "save": "_families", "load": "_families",
    "TokenVocab": "_tokens", "WandbLog": "_wandb", "TensorBoardLog": "_tensorboard", "guided_rollout": "_trl",
}
__all__ = list(_ROOMS)


def __getattr__(name: str) -> object:
    "A name of the front door, from its room"
    if name not in _ROOMS:
        raise AttributeError(f"module 'refine_nb' has no attribute {name!r}; it has {', '.join(_ROOMS)}")
    from importlib import import_module
    return getattr(import_module(f"refine_nb.{_ROOMS[name]}"), name)


def __dir__() -> list[str]: return sorted([*globals(), *_ROOMS])
