"""A folder of documents through a server's /v1/batches: one request a document, as OpenAI's batches have them.

python through_server.py [URL] [FOLDER]: the batch goes on if the server is restarted, and chat comes before it.
"""

import json
import os
import sys
import time
from pathlib import Path

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "letters"
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("PYBATCH_API_KEY", "none"))
model = client.models.list().data[0].id

lines = []
for path in sorted(folder.glob("*.txt")):
    question = f"{path.read_text()}\n\nSay in one sentence what the writer of this letter wants."
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 32, "temperature": 0}
    lines.append({"custom_id": path.stem, "method": "POST", "url": "/v1/chat/completions", "body": body})
rows = "\n".join(map(json.dumps, lines)).encode()

file = client.files.create(file=("letters.jsonl", rows), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"folder": folder.name}
)
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)

if batch.output_file_id is not None:
    for line in client.files.content(batch.output_file_id).text.splitlines():
        result = json.loads(line)
        print(f"{result['custom_id']}: {result['response']['body']['choices'][0]['message']['content'].strip()}")
if batch.error_file_id is not None:
    print(client.files.content(batch.error_file_id).text)
print(f"{batch.status}: {batch.request_counts.completed} of {batch.request_counts.total} answered")
