"""Completes a few texts as they are, with one SamplingParams for all or one for each."""

from pybatch import LLM, SamplingParams

llm = LLM("smollm2-135m", quantization="int8")

prompts = ["The capital of France is", "Water boils at", "The first person on the moon was"]
for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12)):
    print(f"{output.prompt!r} -> {output.outputs[0].text!r} ({output.outputs[0].finish_reason})")

# A prompt may also be token ids, and may have parameters of its own; n samples share the prompt's KV blocks.
ids = llm.get_tokenizer().encode("Once upon a time")
story, capital = llm.generate(
    [ids, "The capital of Italy is"],
    [SamplingParams(n=3, seed=7, max_tokens=16), SamplingParams(temperature=0, max_tokens=4, logprobs=2)],
)
for sample in story.outputs:
    print(f"sample {sample.index}: {sample.text!r}")
assert capital.outputs[0].logprobs is not None
for position in capital.outputs[0].logprobs:
    print({entry.decoded_token: round(entry.logprob, 2) for entry in position.values()})
