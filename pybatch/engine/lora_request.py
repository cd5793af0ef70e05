"""Which adapter a request is answered with; names follow vLLM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """A LoRA adapter in peft's directory, or its name on the Hugging Face hub.

    lora_name: any, for messages. lora_int_id: above 0, another for each adapter. lora_path: the directory or name.
    A bad value raises ValueError.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        for name in ("lora_name", "lora_path"):
            value = str(getattr(self, name))
            if not value:
                raise ValueError(f"LoRARequest: {name}: expected text, got {value!r}")
            object.__setattr__(self, name, value)
        number = self.lora_int_id
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"LoRARequest: lora_int_id: expected an integer above 0, got {number!r}")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path
