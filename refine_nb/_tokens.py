"""Tokens in the place of characters: a Hugging Face tokenizer as a vocabulary (extra `hf`).

    from refine_nb import fit, generate
    model = fit(text, tokenizer="tokenizer.json")      # or a `tokenizers.Tokenizer`, or a fast one of transformers
    generate(model, "To be")

A model over tokens is of the same classes; its ids are tokens. `save` puts the whole tokenizer into the model's file.
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor


class TokenVocab:
    "A tokenizer with the methods of `CharVocab`; raises `ImportError` where `tokenizers` is not installed"

    def __init__(
        self,
        tokenizer: object,  # a `tokenizers.Tokenizer`, a fast tokenizer of transformers, a tokenizer.json, or its text
    ):
        if isinstance(tokenizer, str | Path): tokenizer = _read(tokenizer)
        self.tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        missing = [
            name for name in ("encode", "decode", "get_vocab_size", "to_str") if not hasattr(self.tokenizer, name)
        ]
        if missing:
            raise TypeError(
                f"a {type(tokenizer).__name__} is no tokenizer of Hugging Face (it has no {missing[0]}): give a "
                "tokenizers.Tokenizer, a fast tokenizer of transformers, or the path of a tokenizer.json"
            )

    def __len__(self) -> int: return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> Int[Tensor, "t"]:
        "The tokens of a text, without special ones; raises `ValueError` where the tokenizer finds none"
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if text and not ids: raise ValueError(f"the tokenizer finds no token in {text[:40]!r}: it has no unknown token")
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, ids: Int[Tensor, "t"] | Sequence[int]) -> str:
        "The text of tokens; special ones appear by name"
        return self.tokenizer.decode(torch.as_tensor(ids).tolist(), skip_special_tokens=False)

    def json(self) -> str:
        "The whole tokenizer as text"
        return self.tokenizer.to_str()

    def __repr__(self) -> str: return f"TokenVocab({len(self)} tokens)"


def _read(source: str | Path) -> object:
    "A tokenizer from its file, or from the text of one; nothing is downloaded and nothing executed"
    try: from tokenizers import Tokenizer
    except ImportError as e: raise ImportError("tokenizers are not installed: pip install 'refine_nb[hf]'") from e
    if str(source).lstrip().startswith("{"): return Tokenizer.from_str(str(source))
    if not Path(source).is_file(): raise FileNotFoundError(f"{source} is no file: give the path of a tokenizer.json")
    return Tokenizer.from_file(str(source))
