from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pybatch.serve.guard.keys import Keys, load_keys
from pybatch.serve.limits import Limits

OF_ALL = Limits(requests_per_minute=60)


def load(file: Path | None = None, given: tuple[str, ...] = (), variable: str = "") -> Keys:
    return load_keys(given, file, {"PYBATCH_API_KEY": variable} if variable else {}, OF_ALL)


def test_keys_come_from_flags_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("  # comment\nsk-file  bob smith \n\nsk-unnamed\n")
    keys = load(file, ("sk-1", "sk-2"), "sk-env")
    names = [key.name for key in keys.keys]
    assert names == ["key-1", "key-2", "PYBATCH_API_KEY-1", "bob smith", "keys-4"]
    assert all(key.limits == OF_ALL for key in keys.keys)
    for name, key in zip(names, ("sk-1", "sk-2", "sk-env", "sk-file", "sk-unnamed"), strict=True):
        found = keys.find([b"other", key.encode()])
        assert found is not None
        assert found.name == name
    assert keys.find([b"bob smith", b"", b"sk-", b"sk-1 ", b"sk-\xff"]) is None
    assert keys
    assert not load()


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_file_may_give_keys_limits_of_their_own(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"keys{suffix}"
    file.write_text(
        '[[keys]]\nname = "a"\nkey = "sk-a"\n[[keys]]\nname = "b"\nkey = "sk-b"\ntokens_per_minute = 5\nweight = 2.5\n'
        if suffix == ".toml"
        else '{"keys": [{"name": "a", "key": "sk-a"}, '
        '{"name": "b", "key": "sk-b", "tokens_per_minute": 5, "weight": 2.5}]}'
    )
    first, second = load(file).keys
    assert load(file).weights == {"b": 2.5}
    assert first.limits == OF_ALL
    assert second.limits == Limits(requests_per_minute=60, tokens_per_minute=5)


SECRET = "sk-secret"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("keys", "", "expected API keys, got none"),
        ("keys", "# sk-secret\n", "expected API keys, got none"),
        ("keys", "sk-secret\nsk-secret\n", "expected each key once; see 'keys-1'"),
        ("keys", "sk-1 a\nsk-secret a\n", "expected each name once; see 'a'"),
        ("keys", "sk-secret\x01\n", "line 1: expected a key of printable ASCII"),
        ("keys.json", '{"keys": {"sk-secret": 1}}', "expected `keys`, a list of tables with name, key"),
        ("keys.json", '["sk-secret"]', "expected `keys`, a list"),
        ("keys.json", '["sk-secret"', r"expected json in UTF-8 \(line 1\)"),
        ("keys.json", '[{"sk-secret": "a"}]', r"keys\[0\]: expected no other fields than name, key, requests_per"),
        ("keys.json", '[{"name": "", "key": "sk-secret"}]', r"keys\[0\]: expected a name"),
        ("keys.json", '[{"name": "a", "key": 7}]', r"keys\[0\]: expected a key"),
        ("keys.json", '[{"name": "a", "key": "sk-secret ü"}]', r"keys\[0\]: expected a key"),
        (
            "keys.json",
            '[{"name": "a", "key": "sk-secret", "requests_per_minute": 0}]',
            r"keys\[0\]: requests_per_minute: expected an integer of at least 1, got 0",
        ),
        (
            "keys.json",
            '[{"name": "a", "key": "sk-a", "weight": "sk-secret"}]',
            r"keys\[0\]: weight: expected a number above 0",
        ),
        ("keys.toml", "key = sk-secret", r"expected toml in UTF-8 \(TOMLDecodeError\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_its_keys(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(file)
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None or SECRET not in str(error.value.__cause__)


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-a\n")
    file.chmod(0o640)
    with caplog.at_level(logging.WARNING):
        load(file)
        assert not caplog.records
        file.chmod(0o644)
        load(file)
    assert "every user of this machine can read the API keys in it" in caplog.text
