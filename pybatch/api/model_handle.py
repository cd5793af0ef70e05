"""What LLM and AsyncLLM have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn, Self

from pybatch.api.alerts import Alert, AlertLimits
from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import expect_tokenizer
from pybatch.api.metrics import Metrics
from pybatch.api.opening import open_session
from pybatch.api.vllm_names import METHODS, refuse
from pybatch.engine import Engine, SamplingParams
from pybatch.engine.arguments import takes_fields_of
from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Metric:
    """One of the engine's counters, as "pybatch:" and a field of MetricsSummary."""

    name: str
    value: float


class ModelHandle:
    """A loaded model with its engine, in the process that loaded it."""

    @takes_fields_of(EngineArgs)
    def __init__(self, arguments: EngineArgs) -> None:
        self.session = open_session(arguments)
        self.engine = self.session.engine

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> Self:
        """The same as giving the arguments one by one."""
        return cls(**vars(engine_args))

    @property
    def llm_engine(self) -> Engine:
        """The engine, by vLLM's name."""
        return self.engine

    def get_tokenizer(self, lora_request: None = None) -> Tokenizer:
        """The model's tokenizer. Raises ValueError if it was loaded without one."""
        refuse(lora_request=lora_request)
        return expect_tokenizer(self.session.tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """A copy of the parameters used where none are given: SamplingParams' defaults with max_tokens=None, replaced
        by temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens of generation_config.json.
        """
        return self.session.default_params.clone()

    def get_metrics(self) -> list[Metric]:
        """The engine's counters since it was made. Times in seconds, throughputs in tokens per second."""
        return [Metric(f"pybatch:{name}", value) for name, value in asdict(self.engine.metrics.summary()).items()]

    def metrics(self) -> Metrics:
        """The engine and the machine at this moment: counts, quantiles and throughputs since the engine was made, what
        runs and waits now, memory, processors and GPUs. A snapshot that does not change; any thread may take one."""
        return Metrics.of(self.engine)

    def on_alert(self, callback: Callable[[Alert], object], limits: AlertLimits | None = None) -> None:
        """Has a function called when the KV cache is nearly full, memory runs low, the engine preempts too much or the
        queue stands still, on the thread that steps the engine. limits: for all callbacks; None: as they are. Without
        any callback the log has each kind once all the same."""
        if limits is not None:
            self.session.alerts.limits = limits
        self.session.alerts.callbacks.append(callback)

    if not TYPE_CHECKING:  # which would believe that every name is there

        def __getattr__(self, name: str) -> NoReturn:
            if name in METHODS:
                raise AttributeError(f"{type(self).__name__}.{name}: known in vLLM, not here")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a loaded model cannot be pickled or copied: make one in each process that needs "
            "it, and send prompts and outputs"
        )
