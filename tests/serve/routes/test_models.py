"""The list of models with both clients."""

from __future__ import annotations

import anthropic
import openai
import pytest
from live_server import Server


def test_both_clients_list_and_retrieve_the_model(server: Server) -> None:
    theirs = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (listed,) = theirs.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "pybatch")
    assert theirs.models.retrieve("tiny") == listed
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'other'"):
        theirs.models.retrieve("other")

    client = anthropic.Anthropic(base_url=server.url, api_key="none")
    (info,) = client.models.list()
    assert (info.type, info.display_name, info.max_input_tokens) == ("model", "tiny", 511)
    assert abs(info.created_at.timestamp() - listed.created) < 1
    assert client.models.retrieve("tiny") == info
