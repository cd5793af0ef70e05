"""Many conversations at once, through the model's chat template."""

from pybatch import LLM, SamplingParams

COUNTRIES = ["Japan", "Egypt", "Canada", "Norway"]

llm = LLM("smollm2-135m", quantization="int8")
conversations = [
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": f"What is the capital of {country}?"},
    ]
    for country in COUNTRIES
]
for country, output in zip(
    COUNTRIES, llm.chat(conversations, SamplingParams(temperature=0, max_tokens=24)), strict=True
):
    # A conversation that cannot be answered has `error` set; the others are answered all the same.
    print(f"{country}: {output.error or output.outputs[0].text.strip()}")
