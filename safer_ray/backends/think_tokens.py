"""``<think>`` and ``</think>`` as one token each, because reasoning parsers of serving engines look for those tokens.

A model whose tokenizer lacks them gets two more rows, before anything is trained: each starts as the mean of the
tokens the tag was spelt with. Everything after - teacher, samplers, learner, checkpoints - works on that model.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safer_ray.errors import ModelError, boundary

logger = logging.getLogger(__name__)
THINK_TOKENS = ("<think>", "</think>")


def with_think_tokens(model: Path | str, copy: Path, *, trust_remote_code: bool = False) -> Path | str:
    """Return a resolved ``model`` if its tokenizer has the two tokens, else a checkpoint at ``copy`` that has them.

    A copy that is there already is used again.

    Raises:
        ModelError: if the model cannot be loaded or the copy cannot be written.
    """
    if (copy / "config.json").is_file():
        return copy
    with boundary(ModelError, f"model {model}: its tokenizer cannot be read"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    if not missing_tokens(tokenizer):
        return model
    aside = copy.with_name(f".{copy.name}.{os.getpid()}.part")
    with boundary(ModelError, f"model {model}: <think> cannot be added to it at {copy}"):
        from transformers import AutoModelForCausalLM

        network = AutoModelForCausalLM.from_pretrained(
            str(model),
            dtype="auto",
            low_cpu_mem_usage=True,
            use_safetensors=True,  # anything else is unpickled
            trust_remote_code=trust_remote_code,
        )
        add_think_tokens(network, tokenizer)
        shutil.rmtree(aside, ignore_errors=True)
        network.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.replace(copy)
    logger.info("added %s to model=%s at=%s", " ".join(THINK_TOKENS), model, copy)
    return copy


def missing_tokens(tokenizer: Any) -> list[str]:
    """Return which of the two a tokenizer does not have as a single token."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in THINK_TOKENS if token not in vocabulary]


def add_think_tokens(network: Any, tokenizer: Any) -> None:
    """Add the missing tokens to a Hugging Face model and its tokenizer, in place."""
    import torch
    from transformers import AddedToken

    spelt = {token: tokenizer(token, add_special_tokens=False)["input_ids"] for token in missing_tokens(tokenizer)}
    # Not special: a serving engine must not strip them before its reasoning parser has seen them.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in spelt])
    rows = max(tokenizer.convert_tokens_to_ids(list(spelt)), default=-1) + 1
    if rows > network.get_input_embeddings().num_embeddings:  # some models have spare rows
        network.resize_token_embeddings(rows, mean_resizing=False)
    layers = [network.get_input_embeddings(), network.get_output_embeddings()]
    with torch.no_grad():
        # a tied output layer shares the rows: the second pass then writes the same values
        for layer in layers:
            if layer is not None:
                for token, ids in spelt.items():
                    layer.weight[tokenizer.convert_tokens_to_ids(token)] = layer.weight[ids].float().mean(0)
