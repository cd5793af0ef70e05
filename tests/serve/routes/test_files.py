"""Files with the `openai` client."""

from __future__ import annotations

import io
import time

import httpx
import openai
import pytest
from live_server import Server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(client: openai.OpenAI) -> None:
    content = b"".join(b"line %d \xff\r\n--boundary" % number for number in range(100_000))  # several writes
    file = client.files.create(file=("straße.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(content),
        "straße.jsonl",
        "batch",
        "processed",
    )
    assert client.files.content(file.id).read() == content
    assert client.files.retrieve(file.id) == file
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=file.id):
            gone(file.id)


def test_a_file_may_expire(client: openai.OpenAI) -> None:
    policy = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=io.BytesIO(b""), purpose="batch", expires_after=policy)  # type: ignore[arg-type]
    assert file.expires_at == file.created_at + 3600
    assert abs(file.created_at - time.time()) < 10
    with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds: expected 3,600 to 2,592,000, got 60"):
        client.files.create(file=b"", purpose="batch", expires_after={"anchor": "created_at", "seconds": 60})
    policy = {"anchor": "created_at", "seconds": "1" * 5000}
    with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds: expected a number of seconds, got '111"):
        client.files.create(file=b"", purpose="batch", expires_after=policy)  # type: ignore[arg-type]


def test_a_form_has_few_parts(server: Server) -> None:
    fields = {f"expires_after[{number}]": "x" for number in range(20)}
    response = httpx.post(f"{server.url}/v1/files", data={"purpose": "batch", **fields}, files={"file": b"x"})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "body: expected at most 16 parts")


def test_lists_come_in_pages(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=b"%d" % number, purpose="batch").id for number in range(5)]
    listed = [file.id for file in client.files.list(limit=2)]  # the client asks for page after page
    assert listed[:5] == ids[::-1]
    page = client.files.list(limit=2, order="asc", after=ids[1], purpose="batch")
    assert [file.id for file in page.data] == ids[2:4]
    assert page.has_more
    assert [file.id for file in page.get_next_page().data][:1] == ids[4:]
    assert client.files.list(purpose="vision").data == []
    with pytest.raises(openai.BadRequestError, match="limit: expected a number from 1 to 10,000, got '0'"):
        client.files.list(limit=0)
    with pytest.raises(openai.NotFoundError, match="there is no 'file-none'"):
        client.files.list(after="file-none")


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b"{}", "body: expected multipart/form-data"),
        ("multipart/form-data", b"", "body: expected multipart/form-data"),
        ("multipart/form-data; boundary=b", b"no boundary", "body: expected multipart/form-data: "),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", "file: missing"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n',
            "purpose: expected 'batch', got None",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 100_000 + b"\r\n--b--\r\n",
            "purpose: longer than 65,536 bytes",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut sho',
            "body: expected multipart/form-data: it ends before its last boundary",
        ),
    ],
)
def test_a_body_that_is_no_such_form_is_refused(server: Server, content_type: str, body: bytes, message: str) -> None:
    headers = {"content-type": content_type}
    response = httpx.post(f"{server.url}/v1/files", content=body, headers=headers, timeout=30)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(message)


def test_another_purpose_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose: expected 'batch', got 'vision'"):
        client.files.create(file=b"x", purpose="vision")
