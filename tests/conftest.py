"""Shapes and types of the library are checked while the tests run (jaxtyping + beartype); the library itself does not check them"""
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
import_module("shape_checks")  # before the library is imported
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is declared
install_import_hook("refine_nb", "conftest.checked")


@pytest.fixture(scope="session")
def tinyshakespeare():
    "The corpus, where its file is at hand; tests that need it are skipped, visibly, where it is not"
    folder = os.environ.get("REFINE_NB_DATA")
    if not folder: pytest.skip("REFINE_NB_DATA is not set: a folder that holds tinyshakespeare.txt")
    if not Path(folder, "tinyshakespeare.txt").is_file(): pytest.skip(f"no tinyshakespeare.txt in REFINE_NB_DATA={folder}")
    from refine_nb.data import load_corpus
    return load_corpus("tinyshakespeare")


@pytest.fixture(params=[0, 3], ids=["plain", "ngram"])
def model(request):
    "A small GPT over 11 symbols, with and without n-gram embeddings"
    import torch

    from refine_nb.gpt import ContextualGPT, GPTConfig
    torch.manual_seed(0)
    model = ContextualGPT(GPTConfig(11, context=24, n_layers=3, n_heads=2, width=16, ngram=request.param)).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)  # far from the symmetric start
    return model
