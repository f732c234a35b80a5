"""Models, checkpoints and endpoints that cannot be used: one sentence each, asserted whole where it is ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from safer_ray.backends.endpoint import EndpointSpec, Question
from safer_ray.backends.models import ChatTokenizer
from safer_ray.backends.policy_model import load_policy
from safer_ray.backends.weights import free_weights, read_weights, write_weights
from safer_ray.errors import ConfigError, ModelError, WeightsError
from safer_ray.records import Message


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def loading_fails(model: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_policy(str(model), dtype="fp32", trust_remote_code=False, zero3_config=None)
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{model.parent}/", "")


def test_a_model_without_a_chat_template_is_refused(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as caught:
        ChatTokenizer.load(model)
    assert str(caught.value) == f"model {model}: it has no chat template; use an instruction-tuned model"


def test_a_model_whose_chat_template_is_broken_is_refused(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"its chat template cannot be used: TemplateSyntaxError: "):
        ChatTokenizer.load(model).prompt_ids([Message(role="user", content="x")])


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(
        ModelError, match=r"model .*model: no tokenizer could be loaded; check the id or directory, the"
    ):
        ChatTokenizer.load(model)


def test_a_checkpoint_of_an_architecture_nobody_packs_for_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
    }
    (model / "config.json").write_text(json.dumps(config))
    said = loading_fails(model)
    assert said.startswith("model model: ")
    assert "gpt2" in said


def test_a_config_that_is_no_json_is_refused(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert loading_fails(model).startswith("model model: it cannot be loaded for training: ")


def test_truncated_safetensors_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    said = loading_fails(model)
    assert said.startswith("model model: it cannot be loaded for training: SafetensorError: ")


def test_a_pickled_checkpoint_is_not_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    said = loading_fails(model)
    assert "safetensors" in said
    assert "Unpickling" not in said


def test_published_weights_that_were_damaged_are_refused(tmp_path: Path) -> None:
    import torch

    ref = write_weights([("a", torch.ones(4096))], 3, str(tmp_path))
    path = Path(ref.uri.removeprefix("file://"))
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"weights v3: .* hashes to xxh3:\w+, expected xxh3:\w+"):
        read_weights(ref)
    path.write_bytes(raw[:-100])
    with pytest.raises(WeightsError, match=r"weights v3: reading .*: SafetensorError: "):
        read_weights(ref)
    free_weights(ref)


def test_an_endpoint_that_is_dead_gives_no_answer_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: whoever connects is refused
        monkeypatch.setenv("A_KEY", "k")
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        spec = EndpointSpec(base_url=address, model="m", key_env="A_KEY", max_tries=2, retry_base_s=0.01)
        endpoint = spec.build()
        [reply] = endpoint.ask([Question(question_id="q", messages=(Message(role="user", content="x"),))])
        endpoint.close()
    assert reply.text is None
    assert reply.error == "no connection (APIConnectionError), 2 tries"


def test_an_endpoint_without_its_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        EndpointSpec(base_url="http://h/v1", model="m", key_env="NO_SUCH_KEY").build()
    assert str(caught.value) == "endpoint http://h/v1: $NO_SUCH_KEY is not set; export the key under that name"


def test_a_rank_whose_port_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        join = f"from safer_ray.backends.rank_process import join_group; join_group(0, 1, {place!r}, threads=1)"
        done = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, timeout=200, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"safer_ray.errors.LearnerError: learner rank 0: cannot meet the other ranks at {place} (")
    assert said.endswith("; if another program has taken that port, resume: each start takes a free one")
    assert "address already in use" in said
