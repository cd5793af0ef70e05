"""How long a request may become beside the prefixes that are pinned."""

from __future__ import annotations

from array import array
from collections.abc import Collection

from pybatch.engine.scheduling.block_pool import Pin
from pybatch.engine.scheduling.common_prefix import num_shared
from pybatch.engine.scheduling.sequence import Request


class Room:
    """A request that is let in has, by itself, always blocks enough: those that no pin has, and those of the pins that
    it begins with. Any thread may ask for most_tokens.

    num_blocks: of the pool. max_model_len: no request becomes longer. recurrent: the model has recurrent states. Then a
    request goes on from a pin only behind all of its full blocks, if its state is kept there.
    """

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int, *, recurrent: bool = False) -> None:
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self._recurrent = recurrent
        self.pins: tuple[Pin, ...] = ()  # those that are being computed too

    @property
    def num_pinned(self) -> int:
        """The blocks that pins take at most: a block that several begin with counts once for each, but for the first
        that has it."""
        return sum(
            [
                self._blocks_for(len(pin.tokens)) - self._num_shared(pin.tokens, self.pins[:i])
                for i, pin in enumerate(self.pins)
            ]
        )

    def most_tokens(self, prompt: array[int], *, shares: bool) -> int:
        """shares: the request may use the blocks of pins."""
        if not self.pins:
            return self.max_model_len
        pins = self.pins
        blocks = self.num_blocks - self.num_pinned + (self._num_usable(prompt, pins) if shares else 0)
        return min(self.max_model_len, blocks * self.block_size)

    def add(self, pin: Pin, unfinished: Collection[Request]) -> None:
        """Raises ValueError if a request that has been let in could lack room then, or if all would."""
        before, self.pins = self.pins, (*self.pins, pin)
        try:
            pinned = self.num_pinned
            if pinned >= self.num_blocks:
                raise ValueError(
                    f"pin_prefix: {len(pin.tokens)} tokens need {self._blocks_for(len(pin.tokens))} KV blocks of "
                    f"{self.block_size} tokens, and {pinned} of the pool's {self.num_blocks} would be pinned: none "
                    "would be left"
                )
            for request in unfinished:
                needed = self._most_blocks(request)
                if needed > self.num_blocks - pinned:
                    raise ValueError(
                        f"pin_prefix: with {pinned} of {self.num_blocks} KV blocks pinned {self.num_blocks - pinned} "
                        f"would be left, and a request that has not finished may need {needed}; wait for it, or give "
                        "requests a max_tokens"
                    )
        except ValueError:
            self.pins = before
            raise

    def remove(self, pin: Pin) -> None:
        self.pins = tuple(each for each in self.pins if each is not pin)

    def _most_blocks(self, request: Request) -> int:
        """That it may need besides those of pins."""
        prompt, most = array("q", request.prompt_token_ids), self._blocks_for(request.max_total_tokens)
        if request.pruning is not None and request.pruning.first_point < request.max_total_tokens:
            most = max(most, self._blocks_for(request.pruning.peak_tokens))
        full = len(prompt) // self.block_size  # shared by beams
        needed = full + (most - full) * max(1, request.params.beam_width)
        return needed - (0 if request.params.needs_all_blocks else self._num_usable(prompt, self.pins))

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _num_usable(self, prompt: array[int], pins: tuple[Pin, ...]) -> int:
        """How many blocks of pins a request has for certain in place of its own."""
        if not self._recurrent:
            return self._num_shared(prompt, pins)
        kept = [pin for pin in pins if pin.state is not None]
        return max([len(pin.tokens) // self.block_size for pin in kept if self._passes(prompt, pin)], default=0)

    def _passes(self, prompt: array[int], pin: Pin) -> bool:
        """Whether it begins with all full blocks of the pin, and has more tokens."""
        end = len(pin.tokens) // self.block_size * self.block_size
        return len(prompt) > end <= num_shared(prompt, pin.tokens)

    def _num_shared(self, tokens: array[int], pins: tuple[Pin, ...]) -> int:
        """How many full blocks it begins with that a pin has too."""
        return max([num_shared(tokens, pin.tokens) // self.block_size for pin in pins], default=0)
