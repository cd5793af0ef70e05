"""A chat in the terminal with a running server: answers are shown as they come.

    pybatch serve smollm2-135m --quantization int8
    python examples/chat_service.py [http://127.0.0.1:8000]

Each line of standard input is a question. The whole conversation goes to the server each time, which finds most of it
in its prefix cache.
"""

import os
import sys
import time

from openai import APIError, OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("PYBATCH_API_KEY", "none"))
model = client.models.list().data[0].id
messages = [{"role": "system", "content": "You answer in one or two short sentences."}]

print(f"{model} at {url}; an empty line or Ctrl-D ends the chat.")
while question := (print("> ", end="", flush=True), sys.stdin.readline().strip())[1]:
    messages.append({"role": "user", "content": question})
    answer, asked, first = "", time.perf_counter(), None
    try:
        stream = client.chat.completions.create(
            model=model, messages=messages, max_tokens=200, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            for choice in chunk.choices:
                first = first or time.perf_counter()
                answer += choice.delta.content or ""
                print(choice.delta.content or "", end="", flush=True)
        usage = chunk.usage
    except APIError as error:  # such as a conversation that no longer fits the model's context
        print(f"\nno answer: {error}")
        messages.pop()
        continue
    except KeyboardInterrupt:  # leaving the stream ends the request, and frees what it has in the KV cache
        stream.close()
        print(" ...")
    else:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        print(
            f"\n[first after {first - asked:.2f} s; {usage.completion_tokens} tokens; "
            f"{cached} of {usage.prompt_tokens} tokens of the prompt were cached]"
        )
    messages.append({"role": "assistant", "content": answer})
