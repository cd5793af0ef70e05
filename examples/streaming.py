"""Outputs as they finish, from an iterator of prompts of any length, and one answer as it grows."""

from pybatch import LLM, SamplingParams

llm = LLM("smollm2-135m", quantization="int8")

# Prompts are drawn from the generator as there is room, so that a million of them need no memory.
prompts = (f"{n} and {n} is" for n in range(1, 13))
for output in llm.stream(prompts, SamplingParams(temperature=0, max_tokens=6)):
    print(f"prompt {output.request_id} has finished: {output.outputs[0].text!r}")

# partial=True also yields what has come so far.
shown = 0
for output in llm.stream("Once upon a time", SamplingParams(temperature=0, max_tokens=32), partial=True):
    text = output.outputs[0].text
    print(text[shown:], end="", flush=True)
    shown = len(text)
print()
