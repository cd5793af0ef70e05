"""A mixture of experts (Shazeer et al. 2017): each token goes through the few MLPs that its router chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.blocks.mlp import EPILOGUES, MLP
from pybatch.model.blocks.step import Step
from pybatch.model.buffers import Buffers, Widths
from pybatch.model.config import MoEConfig
from pybatch.model.layers import Linear, NormedLinear
from pybatch.ops import Epilogue, Experts, Routing, Scoring

SCORINGS = {"softmax": Scoring.SOFTMAX, "sigmoid": Scoring.SIGMOID, "top_k_softmax": Scoring.TOP_K_SOFTMAX}


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMLP:
    """An MLP that all tokens go through. gate: what it gives is multiplied by the sigmoid of this projection of a token
    to one number; its `down` is then a stack of one expert."""

    mlp: MLP
    gate: NormedLinear | None


@dataclass(frozen=True, slots=True)
class Routed:
    """What an MoE makes of the residual stream before it adds to it."""

    gated: Tensor  # [T * top_k, width], by expert
    experts: Experts
    shared: Tensor | None  # [T, shared width]
    shared_experts: Experts | None  # with a gate


@dataclass(frozen=True, slots=True, kw_only=True)
class MoE:
    config: MoEConfig
    router: NormedLinear
    correction: Tensor | None  # [experts] float32
    expert_scale: Tensor | None  # [experts] float32
    gate_up: NormedLinear  # of an expert interleaved, or where no epilogue has the activation, gates and then ups
    down: Linear
    shared: SharedMLP | None

    @property
    def widths(self) -> Widths:
        shared = {} if self.shared is None else self.shared.mlp.widths
        routing = {
            f"experts.{name}": 2 * width for name, width in routing_widths(self.config.experts, self.config.top_k)
        }
        width = self.config.top_k * self.config.width
        product = {} if self.config.activation in EPILOGUES else {"experts.gate_up": 2 * width}
        return {**shared, **routing, **GATE_WIDTHS, **product, "experts.gated": width}

    def __call__(self, residual: Tensor, step: Step) -> Routed:
        config, buffers = self.config, step.buffers
        logits = self.router(residual, buffers.of("experts.logits", config.experts, torch.float32), buffers)
        routing = ops.route_experts(
            logits, config.top_k, bias=self.correction, expert_scale=self.expert_scale,
            scoring=SCORINGS[config.scoring], groups=config.groups, top_groups=config.top_groups,
            group_best=config.group_best, normalize=config.normalize, scale=config.scale,
            out=routing_buffers(buffers, "experts", config.experts, config.top_k),
        )  # fmt: skip
        gated = buffers.of("experts.gated", config.top_k * config.width).view(-1, config.width)
        if config.activation in EPILOGUES:
            self.gate_up(residual, gated, buffers, EPILOGUES[config.activation], routing.gathered())
        else:
            product = buffers.of("experts.gate_up", 2 * config.top_k * config.width).view(-1, 2 * config.width)
            self.gate_up(residual, product, buffers, experts=routing.gathered())
            ops.clamped_swiglu(product, gated, alpha=config.alpha, limit=config.limit)
        if self.shared is None:
            return Routed(gated, routing.summed(), None, None)
        shared_experts = None
        if self.shared.gate is not None:  # an expert that every token goes to
            logit = self.shared.gate(residual, buffers.of("shared.logits", 1, torch.float32), buffers)
            out = routing_buffers(buffers, "shared", 1, 1)
            shared_experts = ops.route_experts(logit, 1, scoring=Scoring.SIGMOID, out=out).summed()
        return Routed(gated, routing.summed(), self.shared.mlp(residual, step), shared_experts)

    def add(self, routed: Routed, residual: Tensor, step: Step) -> None:
        self.down(routed.gated, residual, epilogue=Epilogue.ADD, experts=routed.experts)
        if self.shared is None or routed.shared is None:
            return
        if routed.shared_experts is None:
            self.shared.mlp.add(routed.shared, residual, step)
        else:
            self.shared.mlp.down.linear(routed.shared, residual, epilogue=Epilogue.ADD, experts=routed.shared_experts)


def routing_widths(experts: int, top_k: int) -> list[tuple[str, int]]:
    """Of the buffers of a Routing and its logits, in elements of four bytes a token."""
    return [
        ("logits", experts), ("ids", top_k), ("weights", top_k), ("starts", experts + 1), ("order", top_k),
        ("places", top_k),
    ]  # fmt: skip


# Buffers' elements may be of two bytes.
GATE_WIDTHS = {f"shared.{name}": 2 * width for name, width in routing_widths(1, 1)}


def routing_buffers(buffers: Buffers, name: str, experts: int, top_k: int) -> Routing:
    ids, order, places = (buffers.of(f"{name}.{part}", top_k, torch.int32) for part in ("ids", "order", "places"))
    weights = buffers.of(f"{name}.weights", top_k, torch.float32)
    starts = buffers.of(f"{name}.starts", experts + 1, torch.int32)[0]
    return Routing(ids, weights, starts, order.view(-1), places)
