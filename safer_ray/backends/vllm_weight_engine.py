"""The side of a weight update that runs inside vLLM's workers.

vLLM keeps a registry of weight-transfer engines; ours reads safetensors from shared memory and reloads layer by layer
in place, so that packed CPU layouts, fused projections and tensor-parallel shards are made again from the new weights.
vLLM imports this module in every worker, because :class:`SamplerWorker` is named as its worker extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from safer_ray.backends.vllm_cpu_kernels import CpuKernels
from safer_ray.backends.weights import combine_digests, iter_weights, tensor_digest
from safer_ray.errors import WeightsError
from safer_ray.records import WeightsRef

BACKEND = "safer_ray_shm"
EXTENSION = f"{__name__}.SamplerWorker"


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on before the first update."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Where the new weights lie; the fields of a :class:`WeightsRef`."""

    version: int
    uri: str
    checksum: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """What one worker loaded, hashed as it was handed to the model, and how many parameters were read back.

    ``differing`` are parameters that do not hold what was sent, ``unloaded`` those that nothing was sent for.
    """

    version: int
    checksum: str
    nbytes: int
    probed: int
    differing: tuple[str, ...]
    unloaded: tuple[str, ...]


class ShmWeightEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads weights from shared memory into a running model."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo
    loaded: LoadedWeights | None = None
    _sent: Mapping[str, torch.Tensor] = {}
    _expected: frozenset[str] = frozenset()
    _tied: tuple[Any, ...] = ()

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Do nothing: there is no connection to set up."""

    def start_weight_update(self) -> None:
        """Bring every layer back to the shape a checkpoint loads into."""
        self.loaded = None
        self._expected = frozenset(name for name, _ in self.model.named_parameters())
        self._tied = _tied_modules(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one whole version, named by the fields of a :class:`WeightsRef`."""
        with ExitStack() as undo:
            # A load that breaks off must not leave half-restored layers behind: the next one starts from them.
            undo.callback(self._process)
            self.receive_weights(self.parse_update_info(update_info))
            undo.pop_all()

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Hand every tensor to the model's own loader, hashing it on the way."""
        ref = WeightsRef(**asdict(update_info))
        digests: dict[str, Future[str]] = {}
        sent: dict[str, torch.Tensor] = {}

        def handed_over() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in iter_weights(ref):
                digests[name] = hasher.submit(tensor_digest, tensor)
                sent[name] = tensor
                yield name, tensor

        model: Any = self.model
        with ThreadPoolExecutor(1) as hasher:
            done = model.load_weights(handed_over())
        self._sent = sent
        self.loaded = LoadedWeights(
            version=ref.version,
            checksum=combine_digests({name: digest.result() for name, digest in digests.items()}),
            nbytes=sum(tensor.nbytes for tensor in sent.values()),
            probed=0,
            differing=(),
            # Some models do not say what they loaded; the probe still looks at what they hold.
            unloaded=tuple(sorted(self._expected - done)) if done is not None else (),
        )

    def finish_weight_update(self) -> None:
        """Process the layers, then read back what can be compared with what was sent."""
        self._process()
        if self.loaded is None:
            raise WeightsError("weights: an update was finished before any weights came")
        probed, differing = _probe(self.model, self._sent)
        self.loaded = LoadedWeights(**{**asdict(self.loaded), "probed": probed, "differing": differing})
        self._sent = {}

    def _process(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        # Nothing is sent for a tied output layer, so vLLM 0.32 does not process it again; but on CPU it multiplies
        # with a packed copy of the embedding, and that copy would stay the old one.
        for module in self._tied:
            module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Let go of mapped weights."""
        self._sent = {}


def _tied_modules(model: torch.nn.Module) -> tuple[Any, ...]:
    """Return the modules whose weight is another module's, such as an output layer tied to the embedding."""
    seen: set[int] = set()
    tied = []
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        if id(weight) in seen and isinstance(getattr(module, "quant_method", None), QuantizeMethodBase):
            tied.append(module)
        seen.add(id(weight))
    return tuple(tied)


def _probe(model: torch.nn.Module, sent: Mapping[str, torch.Tensor]) -> tuple[int, tuple[str, ...]]:
    """Compare the parameters that keep name and layout in the engine: norms, biases, embeddings.

    Embeddings are padded to a round number of rows; a tensor-parallel shard has fewer rows and is left out. Linear
    layers are fused or packed in ways that depend on the processor and cannot be compared.
    """
    probed, differing = 0, []
    for name, parameter in model.named_parameters():
        source = sent.get(name)
        if source is None or (source.ndim != 1 and "embed" not in name):
            continue
        if parameter.shape[1:] != source.shape[1:] or len(parameter) < len(source):
            continue
        probed += 1
        held = parameter.detach()[: len(source)].cpu()
        if not _same_bytes(held, source.to(held.dtype)):
            differing.append(name)
    return probed, tuple(differing)


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Compare eight bytes at a time where rows and places allow it: value by value, bf16 takes ten times as long."""
    left, right = left.contiguous(), right.contiguous()
    numbers = [n * each.element_size() for each in (left, right) for n in (each.shape[-1], each.storage_offset())]
    as_type = torch.uint8 if any(number % 8 for number in numbers) else torch.int64
    return torch.equal(left.view(as_type), right.view(as_type))


class SamplerWorker(CpuKernels):
    """Worker extension: lets the sampler ask each worker what it holds, and fit it to a CPU."""

    weight_transfer_engine: ShmWeightEngine
    model_config: ModelConfig

    def loaded_weights(self) -> dict[str, Any]:
        """Return the fields of :class:`LoadedWeights` after the last update."""
        loaded = self.weight_transfer_engine.loaded
        if loaded is None:
            raise WeightsError("weights: the last update did not complete")
        return asdict(loaded)


WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightEngine)
