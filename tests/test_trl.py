"""The clipped objective against TRL's own, value and gradient, and guided candidates inside TRL's trainer"""
import os
import warnings

import pytest
import torch

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl", reason="TRL is compared where the `bench` extra is installed")
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from refine_nb._trl import guided_rollout
from refine_nb.candidates import CandidateConfig, select
from refine_nb.grpo import group_advantage, grpo_loss, k3

SYMBOLS, END, LENGTH = "abcdefghij", 10, 5
GUIDED = CandidateConfig(threshold=0, top_k=2, n_random=2, confident_k=2)
pytestmark = pytest.mark.filterwarnings("ignore")
