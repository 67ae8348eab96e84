"""The front door: every kind of model in one file and back, what is refused, adapters against stand-ins, and a light import"""
import json
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import refine_nb
from refine_nb import _ask, _families, ask, ask_all, fit, generate, load, reinforce, save, text_loss
from refine_nb.benchmark_tasks import load_task
from refine_nb.checkpoints import BadCheckpoint, save_model_file
from refine_nb.confidence import ConfidenceAwareGPT, standard_twin
from refine_nb.data import CharVocab
from refine_nb.gpt import ContextualGPT, GPTConfig, set_precision
from refine_nb.quiet_star import QuietConfig, QuietGPT
from refine_nb.thoughts import ThoughtConfig, thought_config_for
from refine_nb.trigram import NGram
from refine_nb.trm import NormedGPT, Recursion, RecursiveGPT, TRMConfig
from refine_nb.refinement import Refinement
from refine_nb.warm_start import WarmStartBatches, thinking_model

TEXT = "the cat sat on the mat\nand the rat sat on the cat\n" * 30
VOCAB = CharVocab.from_text(TEXT, ("<think>", "</think>"))
V = len(VOCAB)
SHAPE = GPTConfig(V, context=20, n_layers=2, n_heads=2, width=16, ngram=2)
TRM = TRMConfig(V, context=20, n_layers=1, n_heads=2, width=16, recursion=Recursion(1, 2, 3, detach=True, halting=True),
                refinement=Refinement(1.0, improvement_reward="none"))
QUIET = QuietConfig(V, context=20, n_layers=1, n_heads=2, width=16,
                    thoughts=ThoughtConfig(VOCAB["<think>"], VOCAB["</think>"], length=3, ahead=2), mixing="attention")


def thinking():
    "A model that thinks before it answers"
    task = load_task("s5", (1, 2))
    model = thinking_model(task, task.sample(50), n_layers=1, width=16)
    model.task, model.thoughts = ("s5", (1, 2)), thought_config_for(task, task.sample(50))
    return model


MODELS = {
    "gpt": lambda: ContextualGPT(SHAPE),
    "twin": lambda: standard_twin(SHAPE),
    "normed": lambda: NormedGPT(SHAPE),
    "recursive": lambda: RecursiveGPT(TRM),
    "confidence": lambda: ConfidenceAwareGPT(SHAPE, feedback=2),
    "quiet": lambda: QuietGPT(QUIET),
    "thinking": thinking,
    "counts": lambda: NGram.fit(VOCAB.encode(TEXT), V, 4),
}


def built(name):
    "A model far from the symmetric start, with its vocabulary"
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.2)
    if name != "thinking": model.vocab = VOCAB
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_comes_back_from_its_file(name, tmp_path):
    model = built(name)
    again = load(save(tmp_path / "m.safetensors", model))
    ids = torch.randint(5, (2, 9))
    assert type(again) is type(model) and torch.equal(again.log_probs(ids), model.log_probs(ids)) and not again.training
    assert _families.family_of(again) == name and repr(again.vocab) == repr(model.vocab)
    if hasattr(model, "cfg"): assert again.cfg == model.cfg
    for attribute in ("feedback", "task", "thoughts"):
        assert getattr(again, attribute, None) == getattr(model, attribute, None)
    assert save(tmp_path / "again.safetensors", again).read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_all_models_of_the_library_have_a_family():
    "A model that is added later needs an entry, or `save` would refuse it"
    import refine_nb.mugrokfast  # noqa: F401  every room with models is imported by now
    kinds, seen = [ContextualGPT], set()
    while kinds: seen.add(kind := kinds.pop()), kinds.extend(k for k in kind.__subclasses__() if k.__module__.startswith("refine_nb"))
    assert seen == {f.build for f in _families._FAMILIES.values() if isinstance(f.build, type)}


def test_precision_and_ties_survive(tmp_path):
    model = built("gpt")
    set_precision(model, "bf16")
    again = load(save(tmp_path / "m", model))
    assert again.blocks[0].up.dtype == torch.bfloat16 and torch.equal(again(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2]])))
    model.head.weight = model.token.weight
    assert torch.equal(load(save(tmp_path / "m", model)).head.weight, model.token.weight)


def test_a_task_of_a_solver_comes_back(tmp_path):
    model = built("recursive")
    model.task = ("s5", (1, 2))
    again = load(save(tmp_path / "m", model))
    assert tuple(again.task) == ("s5", (1, 2)) and _families.family_of(again) == "recursive"


# What is refused

def broken(file, change):
    "A file whose header is changed, tensors as they are"
    from safetensors import safe_open
    with safe_open(file, "pt") as f: about = json.loads(f.metadata()["refine_nb"])
    change(about)
    save_file(load_file(file), file, {"refine_nb": json.dumps(about)})


@pytest.mark.parametrize("change, message", [
    (lambda about: about.update(format="refine_nb model 9"), "has the format 'refine_nb model 9'"),
    (lambda about: about["settings"]["config"].update(width=32), "does not match its own SHA-256"),
    (lambda about: about.update(family="mamba"), "does not match its own SHA-256"),
    (lambda about: about.pop("sha256"), "does not match its own SHA-256"),
])
def test_a_changed_header_is_refused(change, message, tmp_path):
    file = save(tmp_path / "m.safetensors", built("gpt"))
    broken(file, change)
    with pytest.raises(BadCheckpoint, match=message): load(file)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    file = save(tmp_path / "m.safetensors", built("gpt"))
    whole = file.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(BadCheckpoint, match="m.safetensors is damaged"): load(file)
    file.write_bytes(whole[:-1])
    with pytest.raises(BadCheckpoint, match="cannot be read as a model"): load(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(BadCheckpoint, match="written by something else"): load(file)
    torch.save({"x": torch.zeros(2)}, file)
    with pytest.raises(BadCheckpoint, match="cannot be read as a model"): load(file)
    with pytest.raises(BadCheckpoint, match="is a folder: give .*model.safetensors"): load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is no file"): load(tmp_path / "nothing")
    save_model_file(file, built("gpt"), "mamba", {})
    with pytest.raises(BadCheckpoint, match="no family of models 'mamba'"): load(file)


def test_settings_and_weights_of_another_version_are_refused(tmp_path):
    settings = dict(vocab=dict(chars="ab", specials=[]), arguments={}, precision="fp32")
    small = dict(n_symbols=2, context=4, n_layers=1, n_heads=1, width=4)
    save_model_file(tmp_path / "m", built("gpt"), "gpt", settings | dict(config=small | dict(rotary=True)))
    with pytest.raises(BadCheckpoint, match="settings that this version does not take .*rotary"): load(tmp_path / "m")
    save_model_file(tmp_path / "m", built("gpt"), "gpt", settings | dict(config=small))
    with pytest.raises(BadCheckpoint, match="belongs to another model"): load(tmp_path / "m")


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Own(ContextualGPT): "A class of the user's own"
    with pytest.raises(TypeError, match="an? Own is no model of this book"): save(tmp_path / "m", Own(SHAPE), VOCAB)
    with pytest.raises(ValueError, match="what do the ids of this ContextualGPT mean"): save(tmp_path / "m", ContextualGPT(SHAPE))
    with pytest.raises(ValueError, match="has 2 symbols and the model knows"): save(tmp_path / "m", ContextualGPT(SHAPE), CharVocab("ab"))
    assert not (tmp_path / "m").exists()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    import os
    file = save(tmp_path / "m", built("gpt"))
    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"): save(file, built("normed"))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


# Writing

@pytest.mark.parametrize("name", [n for n in MODELS if n != "thinking"])
def test_every_model_of_a_text_continues_a_string(name):
    model = built(name)
    out = generate(model, "the cat", 30, seed=1)
    assert out.startswith("the cat") and out == generate(model, "the cat", 30, seed=1) != generate(model, "the cat", 30, seed=2)
    assert set(text_loss(model, "the cat sat")) == {"val_loss", "val_bits", "val_accuracy"}


def test_counts_write_what_they_counted():
    model = built("counts")
    greedy = generate(model, "the c", 2, temperature=0)
    assert greedy == "the cat"


def test_a_short_run_of_each_method_learns(tmp_path):
    for method in ("gpt", "recursive", "confidence", "quiet"):
        model = fit(TEXT, method, preset="smoke", steps=30, progress=False)
        assert model.report["val_loss"] < 2.6 < torch.tensor(float(V)).log() + 0.1 and _families.family_of(model) == method
        assert text_loss(load(save(tmp_path / "m", model)), TEXT[:100])["val_loss"] < 2.6


def test_a_fit_goes_on_where_it_was_stopped(tmp_path):
    rows = []
    whole = fit(TEXT, preset="smoke", steps=8, progress=False)
    def stop(row):
        if row["step"] == 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(TEXT, preset="smoke", steps=8, folder=tmp_path, callbacks=(stop,), progress=False)
    again = fit(TEXT, preset="smoke", steps=8, folder=tmp_path, callbacks=(rows.append,), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters())) and rows[-1]["step"] == 8


def test_a_reward_sees_its_own_prompt_and_the_model_stays():
    model, seen = built("gpt"), set()
    before = {n: p.clone() for n, p in model.named_parameters()}
    def reward(prompt, written):
        seen.add(prompt)
        assert len(written) >= 4
        return float(written.count("a"))
    learned = reinforce(model, ["the ", "cat sat", "rat sat"], reward, length=4, steps=40, lr=2e-2, progress=False)
    assert seen == {"the ", "cat sat", "rat sat"} and learned.report["reward"] > learned.report["reward_before"]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="do not fit a context of 20"): reinforce(model, ["the cat sat on"], reward, length=12)
    with pytest.raises(ValueError, match="no prompts"): reinforce(model, [], reward)


# The door

def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, refine_nb; refine_nb.__all__; print(sorted({'torch', 'pandas', 'numpy', 'datasets'} & set(sys.modules)), refine_nb.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("[] "), done.stdout + done.stderr


def test_the_door_is_small_and_every_name_is_there():
    assert len(refine_nb.__all__) <= 25
    assert not [name for name in refine_nb.__all__ if not callable(getattr(refine_nb, name))]
    with pytest.raises(AttributeError, match="no attribute 'fitt'; it has load_corpus"): refine_nb.fitt  # noqa: B018


def test_the_door_has_no_name_of_a_room():
    from conftest import ROOT
    assert not set(refine_nb.__all__) & {path.stem for path in (ROOT / "refine_nb").glob("*.py")}


# Tokens

class Words:
    "A stand-in for a tokenizer of Hugging Face: words are tokens"
    names = ["[UNK]", *sorted({*TEXT.split()})]

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return types.SimpleNamespace(ids=[self.names.index(w) if w in self.names else 0 for w in text.split()])

    def decode(self, ids, skip_special_tokens): return " ".join(self.names[i] for i in ids)

    def get_vocab_size(self): return len(self.names)

    def to_str(self): return "{\"words\": true}"


@pytest.fixture
def tokenizers(monkeypatch):
    "A module `tokenizers` that knows one tokenizer"
    module = types.ModuleType("tokenizers")
    module.Tokenizer = types.SimpleNamespace(from_str=lambda text: Words(), from_file=lambda file: Words())
    monkeypatch.setitem(sys.modules, "tokenizers", module)


def test_a_model_of_tokens_writes_and_is_saved(tokenizers, tmp_path):
    model = fit(TEXT * 3, preset="smoke", steps=30, tokenizer=Words(), progress=False)
    assert model.cfg.n_symbols == len(Words.names) and "counts_loss" not in model.report and model.report["val_loss"] < 2.0
    again = load(save(tmp_path / "m", model))
    assert generate(again, "the cat", 5) == generate(model, "the cat", 5) and len(generate(model, "the cat", 5).split()) == 7


def test_tokenizers_that_are_none_or_missing_are_refused(monkeypatch, tmp_path):
    with pytest.raises(TypeError, match="a dict is no tokenizer"): refine_nb.TokenVocab({})
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"refine_nb\[hf\]"): refine_nb.TokenVocab("tokenizer.json")
    with pytest.raises(ValueError, match="quiet thoughts need characters"): fit(TEXT, "quiet", tokenizer=Words())


def test_a_real_tokenizer(tmp_path):
    library = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    trained = library.Tokenizer(library.models.BPE(unk_token="[UNK]"))
    trained.pre_tokenizer, trained.decoder = library.pre_tokenizers.ByteLevel(add_prefix_space=False), library.decoders.ByteLevel()
    trained.train_from_iterator([TEXT], library.trainers.BpeTrainer(vocab_size=280, special_tokens=["[UNK]"], initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    trained.save(str(tmp_path / "tokenizer.json"))
    vocab = refine_nb.TokenVocab(tmp_path / "tokenizer.json")
    assert vocab.decode(vocab.encode("the cat, Ω")) == "the cat, Ω" and len(vocab.encode(TEXT)) < len(TEXT)
    model = fit(TEXT * 3, preset="smoke", steps=5, tokenizer=tmp_path / "tokenizer.json", progress=False)
    assert generate(load(save(tmp_path / "m", model)), "the", 5) == generate(model, "the", 5)
    with pytest.raises(FileNotFoundError, match="tokenizer.json"): refine_nb.TokenVocab(tmp_path / "none.json")


# TensorBoard

@pytest.fixture
def board(monkeypatch):
    "A module that remembers what it was told"
    told = []
    class SummaryWriter:
        def __init__(self, folder): told.append(("open", folder))
        def add_scalar(self, name, value, step): told.append((name, value, step))
        def add_text(self, name, text): told.append((name, text))
        def close(self): told.append(("close",))
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return told


def test_tensorboard_gets_every_number(board):
    with refine_nb.TensorBoardLog("folder", config={"preset": "cpu"}) as log:
        log({"step": 3, "loss": 0.5, "rl/reward": 1, "val_loss": 2.0, "done": True, "words": "no number"})
    assert board == [("open", "folder"), ("config", "- preset: cpu"), ("train/loss", 0.5, 3), ("rl/reward", 1, 3), ("val_loss", 2.0, 3), ("close",)]


def test_tensorboard_logs_a_fit(board):
    with refine_nb.TensorBoardLog("folder") as log: fit(TEXT, preset="smoke", steps=3, callbacks=(log,), progress=False)
    assert [row[-1] for row in board if row[0] == "train/loss"] == [1, 2, 3]


def test_without_tensorboard_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"refine_nb\[tensorboard\]"): refine_nb.TensorBoardLog("folder")


def test_a_real_event_file(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    with refine_nb.TensorBoardLog(tmp_path) as log: log({"step": 1, "loss": 0.5})
    assert list(tmp_path.glob("events.out.tfevents.*"))


# Data sets

def test_a_data_set_becomes_a_model(tmp_path):
    import datasets
    datasets.Dataset.from_dict({"text": [TEXT, TEXT]}).to_json(tmp_path / "rows.jsonl")
    corpus = refine_nb.load_corpus("hf:json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path))
    assert corpus.text == TEXT + "\n\n" + TEXT
    assert replace(corpus, note="") and fit(corpus, "counts", preset="smoke").report["val_loss"] < 1


def test_a_path_is_no_text(tmp_path):
    file = tmp_path / "mine"
    file.write_text(TEXT)
    for path in ("mine.txt", "notes.md", str(file)):
        with pytest.raises(ValueError, match="is the name of a file and not a text: give load_corpus"): fit(path)


def test_many_questions_get_the_answers_of_each():
    model = built("thinking")
    task = load_task("s5", (1, 2))
    items = task.sample(12, 3)
    assert len({len(i.prompt) for i in items}) > 1
    questions, thoughts = [i.prompt for i in items], [",".join(i.steps)[: 5 + 6 * (k % 2)] for k, i in enumerate(items)]
    assert ask_all(model, questions) == [ask(model, q) for q in questions]
    assert ask_all(model, questions, thoughts) == [ask(model, q, t) for q, t in zip(questions, thoughts)]
    assert ask_all(model, []) == [] and ask(model, questions[0], "").thought == ""
    with pytest.raises(ValueError, match="2 thoughts for 1 question"): ask_all(model, questions[:1], thoughts[:2])


def test_a_thought_of_ones_own_is_read_as_the_warm_start_taught_it(monkeypatch):
    model, task, read, whole = built("thinking"), load_task("s5", 2), [], _ask.Prefix
    model.task = ("s5", 2)
    monkeypatch.setattr(_ask, "Prefix", lambda model, ids, **more: (read.append(ids), whole(model, ids, **more))[1])
    [(prompts, written)] = next(WarmStartBatches(task, 3, direct=0.0))
    for taught in torch.cat([prompts, written], 1):
        start, end = ((taught == mark).nonzero().max().item() for mark in (model.thoughts.start, model.thoughts.end))
        ask(model, task.vocab.decode(taught[:start]), task.vocab.decode(taught[start + 1:end]))
        assert torch.equal(read[-1][0], taught[: end + 1])


def test_a_thought_of_ones_own_fits_as_long_as_it_can():
    model = built("thinking")
    item = load_task("s5", (1, 2)).sample(1, 0)[0]
    room = model.cfg.context + 1 - len(item.prompt) - 2 - len(item.completion())
    ask(model, item.prompt, "a" * room)
    with pytest.raises(ValueError, match=f"has room for {room}"): ask(model, item.prompt, "a" * (room + 1))
    with pytest.raises(ValueError, match="ends a thought"): ask(model, item.prompt, "ab:cd")
