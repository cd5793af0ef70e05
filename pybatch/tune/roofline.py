"""A step's time on a chip by what it moves and computes: bytes of weights, of KV and of states, and operations. Weights
that are on the host come over the bus while others are computed with: a step takes at least as long as they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pybatch.engine.execution.kv_cache import KvLayout, LatentLayout, LayerLayout
from pybatch.engine.execution.state_cache import StateLayout
from pybatch.model.config import (
    AttentionConfig,
    GatedDeltaConfig,
    LatentAttentionConfig,
    LayerConfig,
    MLPBesideMoEConfig,
    MLPConfig,
    MoEConfig,
)
from pybatch.model.decoder import Decoder
from pybatch.tune.chips import KERNELS, Chip, Shares
from pybatch.tune.step_times import StepShape

STEP_SECONDS = 5e-4  # of a step on the host, that the chip waits for: measured on an H100's machine, 0.45 to 1.1 ms
SEQUENCE_SECONDS = 5e-6  # more for each sequence
PARTS = ("weights", "arithmetic", "KV", "overhead", "transfer")


@dataclass(frozen=True, slots=True)
class Product:
    """A projection: rows x columns weights, or of many experts of which a token goes through some."""

    rows: int
    columns: int
    experts: int = 1
    per_token: int = 1

    def touched(self, tokens: int) -> float:
        """Experts whose weights are read, where each token draws its own evenly."""
        return self.experts * (1 - (1 - self.per_token / self.experts) ** tokens)

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.experts


def products(decoder: Decoder) -> Iterator[Product]:
    """Of all layers, without the projection to the vocabulary."""
    hidden = decoder.config.hidden_size
    for layer in decoder.config.layers:
        mixer = layer.mixer
        if isinstance(mixer, AttentionConfig):
            gate = mixer.q_width if mixer.gated else 0
            of_kv = 0 if mixer.kv_of is not None else 2 * mixer.kv_width
            yield Product(mixer.q_width + of_kv + gate, hidden)
            yield Product(hidden, mixer.q_width)
        elif isinstance(mixer, LatentAttentionConfig):
            heads, latents = mixer.num_heads, mixer.latent + mixer.rope.rotary_dim
            yield Product((mixer.query_latent or mixer.q_width) + latents, hidden)
            if mixer.query_latent:
                yield Product(mixer.q_width, mixer.query_latent)
            yield Product(heads * mixer.latent, mixer.key_dim)
            yield Product(heads * mixer.value_dim, mixer.latent)
            yield Product(hidden, heads * mixer.value_dim)
        else:
            yield Product(mixer.channels + mixer.value_width + 2 * mixer.value_heads, hidden)
            yield Product(hidden, mixer.value_width)
        yield from of_mlp(layer.mlp, hidden)


def of_mlp(mlp: MLPConfig | MoEConfig | MLPBesideMoEConfig, hidden: int) -> Iterator[Product]:
    if isinstance(mlp, MLPBesideMoEConfig):
        yield from of_mlp(mlp.mlp, hidden)
        yield from of_mlp(mlp.moe, hidden)
        return
    if isinstance(mlp, MLPConfig):
        yield Product((2 if mlp.gated else 1) * mlp.width, hidden)
        yield Product(hidden, mlp.width)
        return
    yield Product(mlp.experts, hidden)
    yield Product(2 * mlp.width, hidden, mlp.experts, mlp.top_k)
    yield Product(hidden, mlp.width, mlp.experts, mlp.top_k)
    if mlp.shared_width:
        yield from of_mlp(mlp.shared, hidden)


AnyAttention = AttentionConfig | LatentAttentionConfig


def as_own(layers: Sequence[LayerConfig], mixer: AnyAttention) -> AnyAttention:
    """The attention whose keys and values it reads."""
    if mixer.kv_of is None:
        return mixer
    other = layers[mixer.kv_of].mixer
    assert isinstance(other, AttentionConfig)
    return other


class Roofline:
    """What a chip takes for steps of a model. decoder: planned. kv, states: its layouts. host_bytes: of weights that
    are on the host."""

    def __init__(
        self,
        chip: Chip,
        shares: Shares,
        decoder: Decoder,
        quantization: str | None,
        kv: KvLayout,
        states: StateLayout | None,
        kv_name: str,
        host_bytes: int = 0,
    ) -> None:
        config = decoder.config
        self._bandwidth, self._peak = chip.bandwidth * shares.copy, chip.bf16 * shares.bf16
        kernel = KERNELS.get(quantization, "w8a16")  # blocks of 2 to 8 bits too
        self._matmul = shares.matmuls[kernel]
        faster = chip.int8 / chip.bf16 if kernel == "w8a8" else 1.0  # measured where int8 is twice as fast as bf16
        self._operations = self._peak * self._matmul.arithmetic * faster / (2.0 if kernel == "w8a8" else 1.0)
        self._products = Counter(products(decoder))
        self._head = Product(config.vocab_size, config.hidden_size) if config.generates else None
        tables = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        weights = tables + sum(count * each.weights for each, count in self._products.items())
        self._weight_bytes = decoder.weight_bytes() / weights  # with what scales take
        own = dict(zip(config.attentions, kv.layers, strict=True))
        mixers = [layer.mixer for layer in config.layers if not isinstance(layer.mixer, GatedDeltaConfig)]
        self._attention = Counter((own[as_own(config.layers, mixer)], mixer) for mixer in mixers)
        self._decode_bandwidth = self._bandwidth * shares.decode_attention.get(
            kv_name, shares.decode_attention["bfloat16"]
        )
        self._prefill_operations = self._peak * shares.prefill_attention
        self._layers_seconds = shares.layer_seconds * config.num_layers
        self._state_bytes = 0 if states is None else states.slot_bytes
        self._transfer = host_bytes / chip.bus if host_bytes else 0.0

    def seconds(self, shape: StepShape) -> float:
        return sum(self.parts(shape).values())

    def parts(self, shape: StepShape) -> dict[str, float]:
        """By what it is spent on: PARTS."""
        weights = arithmetic = overhead = 0.0
        of_head = [] if self._head is None else [(self._head, 1, shape.sequences)]
        for product, count, tokens in [*((each, n, shape.tokens) for each, n in self._products.items()), *of_head]:
            if tokens == 0:
                continue
            size = count * product.rows * product.columns
            weights += self._weight_bytes * size * product.touched(tokens) / (self._bandwidth * self._matmul.bytes)
            arithmetic += 2.0 * size * product.per_token * tokens / self._operations
            overhead += count * self._matmul.seconds
        layers = self._attention.items()
        arithmetic += sum(n * self._pairs(mixer, shape) for (_, mixer), n in layers) / self._prefill_operations
        kv = sum(n * self._read(layer, mixer, shape) for (layer, mixer), n in layers) / self._decode_bandwidth
        kv += 2 * self._state_bytes * shape.sequences / self._bandwidth
        overhead += self._layers_seconds + STEP_SECONDS + SEQUENCE_SECONDS * shape.sequences
        wait = max(0.0, self._transfer - weights - arithmetic - kv - overhead)
        return dict(zip(PARTS, (weights, arithmetic, kv, overhead, wait), strict=True))

    def _read(self, layer: LayerLayout | LatentLayout, mixer: AnyAttention, shape: StepShape) -> float:
        """Bytes of keys and values that the sequences which decode attend to."""
        context = shape.context
        if mixer.window and shape.sequences:
            context = min(context, mixer.window * shape.sequences)
        return context * layer.num_bytes / layer.block_size

    def _pairs(self, mixer: AnyAttention, shape: StepShape) -> float:
        """Operations of prompts' attention."""
        pairs = min(shape.pairs, mixer.window * shape.tokens) if mixer.window else shape.pairs
        return 4.0 * mixer.num_heads * mixer.head_dim * pairs


def step_bytes(decoder: Decoder, tokens: int, sequences: int) -> int:
    """Of the buffers that the largest step takes: a layer's activations, and logits in float32."""
    widths = sum(each.rows * each.per_token for each in set(products(decoder)))
    return tokens * widths * decoder.dtype.itemsize + 4 * sequences * decoder.config.vocab_size
