"""The engine: requests in, outputs out, one step at a time."""

from __future__ import annotations

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.parallel.followers import Followers
from pybatch.engine.metrics import RequestMetrics
from pybatch.engine.outputs import RequestOutput
from pybatch.engine.parts import make_parts
from pybatch.engine.pooling_params import Params
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.scheduling.block_pool import Pin
from pybatch.engine.scheduling.sequence import Request
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.engine.stepping import Stepper
from pybatch.machine.torch_state import in_neutral_torch, on_device
from pybatch.model.decoder import Decoder
from pybatch.model.lora.slots import AdapterSlots
from pybatch.model.pooling import LAST_TOKEN, PoolingConfig
from pybatch.model.text.tokenizer import Tokenizer


class Engine(Stepper):
    """Runs many requests at once on one model. Not for use by two threads at a time.

    tokenizer may be None: then outputs have no text, and stop strings are refused. draft_decoder: the draft model of
    config's speculative_config, where that names one. followers: the other ranks, where several hold the decoder.
    pooling: how the model embeds. labels: as Pooler's. adapter_slots: of the decoder, where requests may name adapters.

    A request that fails comes out with finish_reason "error" and disturbs no other: a step that raises is tried again
    without the request at fault. A step raises only for a fault of the machine (out of memory, a broken device) or an
    interrupt: then the engine discards the unfinished requests and resets, and take_outputs() has what was ready.
    """

    @in_neutral_torch
    @on_device(lambda engine, decoder, *arguments, **named: decoder.device)
    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
        draft_decoder: Decoder | None = None,
        followers: Followers | None = None,
        *,
        pooling: PoolingConfig = LAST_TOKEN,
        labels: tuple[int, int] | None = None,
        adapter_slots: AdapterSlots | None = None,
    ) -> None:
        config = config.on(decoder.device.type)
        self.pooling = pooling
        self._decoder = decoder
        self._draft_decoder = draft_decoder if config.speculation and config.speculation.model else None
        parts = make_parts(
            decoder,
            tokenizer,
            config,
            draft_decoder=self._draft_decoder,
            followers=followers,
            pooling=pooling,
            labels=labels,
            adapter_slots=adapter_slots,
        )
        self.adapters, self._intake = parts.adapters, parts.intake
        self.max_model_len, self.state_bytes = parts.sizes.max_model_len, parts.sizes.state_bytes  # of all states
        self.kv_block_bytes = parts.sizes.kv_block_bytes  # with a draft model's
        super().__init__(config, parts)

    @property
    def decoder(self) -> Decoder:
        """The model that the engine runs."""
        return self._decoder

    @property
    def weight_bytes(self) -> int:
        """With a draft model's."""
        draft = self._draft_decoder
        return self._decoder.weight_bytes() + (0 if draft is None else draft.weight_bytes())

    @property
    def kv_blocks_touched(self) -> int:
        """How many blocks of the pool have ever been used: on a CPU only their memory is resident."""
        return self._pool.num_touched

    @property
    def kv_cache_bytes(self) -> int:
        """Of the whole pool, of a draft model's, and of recurrent states; memory that no request has touched yet is not
        resident."""
        return self.num_kv_blocks * self.kv_block_bytes + self.state_bytes

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: Params,
        *,
        prompt: str | None = None,
        stream: bool = False,
        index: int = 0,
        arrival_time: float | None = None,
        standing: Standing = ORDINARY,
    ) -> None:
        """Queues a request. Raises ValueError, with the numbers, if it can never be run, QueueFullError if too many
        others wait (background work neither counts nor is refused); nothing is left of it then.

        params: copied. prompt: the text, handed through to the outputs. stream: an output after every step that brought
        something new, as params.output_kind has it. index: the prompt's place among the caller's prompts, so that equal
        prompts without a seed draw differently. arrival_time: by time.perf_counter(); None: now. standing: when it
        runs, as Scheduler has it.
        """
        if not standing.background:
            self.config.expect_place(self._requests.num_bounded)
        request = self._intake.request(
            request_id,
            prompt_token_ids,
            params,
            prompt=prompt,
            stream=stream,
            index=index,
            arrival_time=arrival_time,
            standing=standing,
        )
        self._add(request)

    def _add(self, request: Request) -> None:
        self._requests.expect_new(request)
        if self._entrance.admit(request):
            self._scheduler.add(request.sequences[0])
        self._requests.add(request)

    def pin_prefix(self, request_id: str, prompt_token_ids: list[int]) -> Pin:
        """Queues a request that computes a prefix, and keeps its KV blocks when it has finished. Its output has a token
        that is of no use. If it fails or is aborted nothing is pinned.

        Raises ValueError, with the numbers, if it does not leave room for a request that has not finished.
        """
        if not self.config.enable_prefix_caching:
            raise ValueError("pin_prefix: enable_prefix_caching is off, so that no prefix would be found again")
        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        request = self._intake.request(request_id, prompt_token_ids, params)
        request.pin = pin = Pin(request.prompt_token_ids)
        self._intake.room.add(pin, self._requests.unfinished.values())
        try:
            self._add(request)
        except ValueError:
            self._intake.room.remove(pin)
            raise
        return pin

    def unpin(self, pin: Pin) -> None:
        """Makes the prefix one like any other in the cache. Does nothing if it is not pinned."""
        self._pool.unpin(pin)
        if self._states is not None:
            self._states.unpin(pin)
        self._intake.room.remove(pin)

    def expect_runnable(self, prompt_token_ids: list[int], params: Params) -> None:
        """Raises ValueError where add_request would. Any thread may call it."""
        self._intake.accept(prompt_token_ids, params)

    @in_neutral_torch
    @on_device(lambda engine: engine.decoder.device)
    def step(self) -> list[RequestOutput]:
        """One step of the batch. Returns every request that finished, and what is new of those that stream."""
        try:
            self._step()
        except BaseException:
            try:
                for request in list(self._requests.unfinished.values()):
                    if request.finished:
                        self._requests.tell(request, self.metrics)
            finally:
                self._requests.discard_all()
                self._intake.room.pins = self._pool.pins
                self._new_schedule()
            raise
        return self.take_outputs()

    def take_outputs(self) -> list[RequestOutput]:
        """Those that were ready when a step raised."""
        return self._requests.take_ready()

    def abort(self, request_id: str) -> None:
        """Drops a request; no output of it follows. An id that is not known, or has finished, is ignored."""
        request = self._requests.pop(request_id)
        if request is not None:
            for sequence in request.sequences:
                sequence.finish_reason = "abort"
                self._scheduler.finish(sequence)
            self._requests.release(request)
            self.metrics.finish_reasons["abort"] += 1

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes but pinned ones. Does nothing and returns False while requests are unfinished."""
        if self._requests:
            return False
        self._pool.forget_cached()
        if self._states is not None:
            self._states.pool.forget_cached()
        return True

    def has_unfinished(self) -> bool:
        return len(self._requests) > 0

    def num_unfinished(self) -> int:
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Samples that are in the batch. This and the two below are of now, and may be read on any thread."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Samples that wait for a place in the batch, or for their grammar: new ones, and those that were preempted."""
        return len(self._scheduler.waiting) + len(self._entrance)

    @property
    def num_kv_blocks_used(self) -> int:
        return self._pool.num_used

    @property
    def num_kv_blocks_pinned(self) -> int:
        """Of those in use."""
        return self._pool.num_pinned

    @property
    def swap_seconds(self) -> float:
        """For a block to the host and back, measured when it is first asked for; 0 without a swap_space."""
        return self._swap_cost.seconds_per_block if self.num_host_blocks else 0.0

    def metrics_of(self, request_id: str) -> RequestMetrics | None:
        """Of an unfinished request, with the tokens that it has so far; None for any other. Of any thread."""
        return self._requests.metrics_of(request_id)
