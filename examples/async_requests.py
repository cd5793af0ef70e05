"""Concurrent asyncio tasks whose requests run in one batch; one of them is streamed, one is given up."""

import asyncio

from pybatch import AsyncLLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=24)


async def answer(llm: AsyncLLM, prompt: str) -> str:
    text = ""
    async for output in llm.generate(prompt, PARAMS):
        text = output.outputs[0].text
    return text


async def first_words(llm: AsyncLLM, prompt: str) -> str:
    """Leaving the loop aborts the request, and frees its KV blocks."""
    async for output in llm.generate(prompt, SamplingParams(temperature=0, max_tokens=512)):
        if len(text := output.outputs[0].text) > 30:
            return text
    return ""


async def main() -> None:
    async with AsyncLLM("smollm2-135m", quantization="int8") as llm:
        texts = await asyncio.gather(
            answer(llm, "The capital of France is"),
            answer(llm, "Water boils at"),
            first_words(llm, "A very long story:"),
        )
    for text in texts:
        print(repr(text))


asyncio.run(main())
