"""A whole language model made on the spot: random weights, a real tokenizer, a ChatML template.

It says nothing sensible, but everything that loads, samples, trains or saves a model treats it as one:
two Llama layers of width 64, about 512 byte-level BPE tokens, tied embeddings, 1024 positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safer_ray.records import Rollout

POSITIONS = 1024
END_OF_TURN = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "<think>\n<assessment>The user asks how to bake bread; nothing here is hidden or encoded.</assessment>",
    "\n<verification>No rule is violated: R03 comes near, but this is a kitchen question.</verification>",
    "\n<calibration>Answer in full, with the steps in order.</calibration>\n</think>",
    "\nMix flour, water, salt and yeast, let the dough rise, then bake it for forty minutes.",
    "<think>\n<assessment>The user wants to harm another person and says so openly.</assessment>",
    "\n<verification>Rule R01 is violated: the request asks for help with violence.</verification>",
    "\n<calibration>Refuse, give the reason, and offer a safe alternative.</calibration>\n</think>",
    "\nI can't help with that. If you are in danger, please call your local emergency number.",
    "system user assistant\nHow do I write a letter to my landlord? Explain what this code does.",
)


def _train_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token=END_OF_TURN,
        pad_token="<|endoftext|>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_tiny_model(path: Path, *, seed: int = 0) -> Path:
    """Write the model to ``path`` as an ordinary Hugging Face checkpoint (bf16 safetensors) and return ``path``.

    The same ``seed`` gives the same weights.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def logprobs_under(model: Any, rollout: Rollout) -> list[float]:
    """Return the log-probs of a rollout's tokens under a Hugging Face model, by one forward."""
    import torch

    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].float()
    chosen = torch.tensor(rollout.completion_ids)[:, None]
    gathered: list[float] = logits.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()
    return gathered
