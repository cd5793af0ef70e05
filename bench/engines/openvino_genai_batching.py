"""OpenVINO GenAI's continuous batching. fp32 and int8 are the exported model's own.

Only fp32 says what to compute in: int8 weights are multiplied in what OpenVINO chooses for the processor, which is
bf16 where there is AMX, and the KV cache is of its choice too; `uses` tells.
"""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai


class Engine:
    def __init__(self, model: str, precision: str, threads: int) -> None:
        self.version = openvino_genai.__version__
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 512
        scheduler.enable_prefix_caching = False
        properties: dict[str, object] = {"INFERENCE_NUM_THREADS": threads}
        if precision == "fp32":
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        core.set_property("CPU", properties)
        names = ("OPTIMIZATION_CAPABILITIES", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
        self.uses = ", ".join(f"{name} {core.get_property('CPU', name)}" for name in names)
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def generate(self, requests: list[dict]) -> list[list[int]]:
        prompts, configs = [], []
        for request in requests:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = request["max_new"]
            config.ignore_eos = True
            config.do_sample = False
            configs.append(config)
            prompts.append(openvino.Tensor(np.array([request["prompt"]], np.int64)))
        results = sorted(self.pipeline.generate(prompts, configs), key=lambda result: result.m_request_id)
        return [list(result.m_generation_ids[0]) for result in results]
