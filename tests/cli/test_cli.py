from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_command import COMMAND, FAST, Cli, on_terminal

import pybatch
from pybatch import LLM, EngineArgs, SamplingParams
from pybatch.api.session import Session
from pybatch.cli.flags import STRUCTURE, EngineFlags, SamplingFlags


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", *({"id": f"r{i}", "prompt": f"Say {i}", "tag": [i]} for i in range(6)))


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in the order of the input."""
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["row"])


def test_every_row_is_answered_and_keeps_its_fields(cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    ran = cli("run", prompts, "-o", results, "--model", tiny_model, *FAST)
    assert ran.code == 0
    rows = read(results)
    llm = LLM(tiny_model, num_kv_blocks=128)
    expected = llm.chat(
        [[{"role": "user", "content": f"Say {i}"}] for i in range(6)], SamplingParams(temperature=0, max_tokens=8)
    )
    for i, (row, output) in enumerate(zip(rows, expected, strict=True)):
        assert row == {
            "id": f"r{i}",
            "prompt": f"Say {i}",
            "tag": [i],
            "row": i,
            "response": output.outputs[0].text,
            "finish_reason": output.outputs[0].finish_reason,
            "usage": {
                "prompt_tokens": len(output.prompt_token_ids),
                "completion_tokens": len(output.outputs[0].token_ids),
            },
        }
    for figure in ("wall time", "output throughput", "TTFT p50 / p99", "TPOT p50 / p99", "preemptions", "peak memory"):
        assert figure in ran.err
    assert ran.out == ""


def test_a_file_without_rows_is_told_of_and_has_no_results(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    ran = cli("run", write(tmp_path / "none.jsonl"), "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST)
    assert ran.code == 0
    assert "none.jsonl has no rows: there is nothing to answer." in ran.err
    assert read(tmp_path / "out.jsonl") == []


def test_bad_rows_become_errors_and_the_others_go_on(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    good = {"prompt": "Hello"}
    prompts = write(
        tmp_path / "prompts.jsonl",
        good,
        '{"prompt": "cut',
        {"id": 1},
        "",
        {"prompt": "x" * 600, "id": 2},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "Hello"}], "error": "mine"},
    )
    ran = cli("run", prompts, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST)
    rows = read(tmp_path / "out.jsonl")
    assert ran.code == 1
    assert "4 of 6 rows failed" in ran.err
    assert [("error" in row, "response" in row) for row in rows] == [
        (False, True), (True, False), (True, False), (True, False), (True, False), (False, True),
    ]  # fmt: skip
    errors = ((2, "not valid JSON"), (3, "the row has neither"), (5, "prompt: "), (6, "chat template: no tools"))
    for row, (line, says) in zip(rows[1:5], errors, strict=True):
        assert row["error"].startswith(f"line {line}: {says}")
    assert rows[3]["id"] == 2
    assert rows[5]["input_error"] == "mine"
    assert rows[5]["response"] == rows[0]["response"]


def test_template_and_system_message(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", {"text": "fine"}, {"txt": "no"})
    arguments = ["--prompt-template", "Classify: {text}", "--system", "Be brief.", "--model", tiny_model, *FAST]
    assert cli("run", prompts, "-o", tmp_path / "out.jsonl", *arguments).code == 1
    first, second = read(tmp_path / "out.jsonl")
    text = "<|role|>system: Be brief.<|end|><|role|>user: Classify: fine<|end|><|role|>assistant: "
    (output,) = LLM(tiny_model, num_kv_blocks=128).generate(text, SamplingParams(temperature=0, max_tokens=8))
    assert first["response"] == output.outputs[0].text
    assert second["error"] == "line 2: the template asks for 'text'; the row has 'txt'"


def test_sampling_flags_reach_the_model(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.txt", "Hello", "", "There")
    flags = ["--raw", "-n", "3", "--temperature", "0.9", "--seed", "5", "--max-tokens", "9", "--ignore-eos"]
    flags += ["--logprobs", "2", "--prompt-logprobs", "0", "--logit-bias", '{"40": -100}', "--top-k", "20"]
    engine = ["--model", tiny_model, "--num-kv-blocks", "128", "--quantization", "int8", "--no-enable-prefix-caching"]
    assert cli("run", prompts, "-o", tmp_path / "out.jsonl", *flags, *engine).code == 0
    rows = read(tmp_path / "out.jsonl")
    params = SamplingParams(
        n=3,
        temperature=0.9,
        max_tokens=9,
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=0,
        logit_bias={40: -100},
        top_k=20,
    )
    llm = LLM(tiny_model, num_kv_blocks=128, quantization="int8", enable_prefix_caching=False, seed=5)
    for row, output in zip(rows, llm.generate(["Hello", "There"], params), strict=True):
        assert row["prompt"] == output.prompt
        assert row["response"] == [sample.text for sample in output.outputs]
        assert row["usage"]["completion_tokens"] == 27
        assert [len(positions) for positions in row["logprobs"]] == [9, 9, 9]
        for sample, positions in zip(output.outputs, row["logprobs"], strict=True):
            assert [at[0]["token_id"] for at in positions] == sample.token_ids
        assert row["prompt_logprobs"][0] is None
        assert [at[0]["token_id"] for at in row["prompt_logprobs"][1:]] == output.prompt_token_ids[1:]


def test_a_kv_policy_is_of_the_job_or_of_a_row(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog, and then it does so again."
    streaming = {"type": "streaming_llm", "window": 20}
    policies = [
        None,  # the job's
        {"type": "snapkv", "budget": 16, "observed": 8},
        {"type": "heavy_hitters", "heavy": 16, "recent": 16},
        {"type": "snapkv", "window": 20},
    ]
    prompts = write(tmp_path / "in.jsonl", *({"prompt": text, "kv_policy": each} for each in policies))
    flags = ["--raw", "--temperature", "0", "--max-tokens", "40", "--ignore-eos", "--logprobs", "0"]
    engine = ["--model", tiny_model, "--num-kv-blocks", "128"]
    ran = cli("run", prompts, "-o", tmp_path / "out.jsonl", *flags, *engine, "--kv-policy", json.dumps(streaming))
    assert ran.code == 1
    *rows, wrong = read(tmp_path / "out.jsonl")
    assert wrong["error"].startswith("line 4: kv_policy: snapkv: unknown argument 'window'")
    llm = LLM(tiny_model, num_kv_blocks=128)
    found = []
    for row, policy in zip(rows, [streaming, *policies[1:3]], strict=True):
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=0, kv_policy=policy)
        (sample,) = llm.generate(text, params)[0].outputs
        assert row["response"] == sample.text
        assert sample.logprobs is not None
        found.append([each[token].logprob for each, token in zip(sample.logprobs, sample.token_ids, strict=True)])
        assert [position[0]["logprob"] for position in row["logprobs"]] == found[-1]
    assert found[0] != found[1] != found[2]


def test_there_is_a_flag_for_every_argument() -> None:
    def names(group: Any) -> set[str]:
        return {field.name for field in fields(group)}

    without = {"seed", "detokenize", "output_kind", "structured_outputs", "lora_request"}
    assert names(SamplingFlags) - STRUCTURE.keys() == names(SamplingParams) - without
    assert names(EngineFlags) == names(EngineArgs) - {"skip_tokenizer_init"}


def test_flags_change_the_models_own_sampling_defaults(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    model, prompts, out = tmp_path / "model", write(tmp_path / "in.jsonl", {"prompt": "Hello"}), tmp_path / "out.jsonl"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text('{"temperature": 0, "max_new_tokens": 7}')

    def answer(*flags: str | Path) -> str:
        assert cli("run", prompts, "--overwrite", "-o", out, "--num-kv-blocks", "64", "--ignore-eos", *flags).code == 0
        return str(read(out)[0]["response"])

    greedy = answer("--model", tiny_model, "--temperature", "0", "--max-tokens", "7")
    assert answer("--model", model) == greedy
    assert greedy.startswith(answer("--model", model, "--max-tokens", "2"))
    whole = answer("--model", model, "--generation-config", "vllm", "--temperature", "0", "--max-model-len", "64")
    assert whole.startswith(greedy)
    assert len(whole) > len(greedy)


def test_answers_follow_a_schema_a_regular_expression_or_a_choice(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, schema = write(tmp_path / "in.jsonl", {"prompt": "Hello"}), tmp_path / "schema.json"
    schema.write_text('{"enum": ["x", 7]}')
    always = ["run", prompts, "--overwrite", "-o", tmp_path / "out.jsonl", "--model", tiny_model, "--max-tokens", "20"]
    for flags, answers in (
        (["--json-schema", schema], ('"x"', "7")),
        (["--regex", "a[bc]"], ("ab", "ac")),
        (["--choice", "yes", "--choice", "no"], ("yes", "no")),
    ):
        assert cli(*always, *flags).code == 0
        assert read(tmp_path / "out.jsonl")[0]["response"] in answers
    wrong = cli(*always, "--regex", "a", "--choice", "b")
    assert wrong.code == 2
    assert "structured_outputs: expected exactly one of" in wrong.err
    missing = cli(*always, "--json-schema", tmp_path / "none.json")
    assert missing.code == 2
    assert "none.json" in missing.err


def test_stop_strings(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", {"prompt": "Hello"})
    arguments = [
        "run",
        prompts,
        "--overwrite",
        "-o",
        tmp_path / "out.jsonl",
        "--model",
        tiny_model,
        *FAST,
        "--ignore-eos",
    ]
    cli(*arguments)
    (whole,) = read(tmp_path / "out.jsonl")
    stop = whole["response"][3:5]
    cli(*arguments, "--stop", stop, "--stop", "never there")
    (stopped,) = read(tmp_path / "out.jsonl")
    assert stopped["response"] == whole["response"][: whole["response"].index(stop)]
    assert stopped["finish_reason"] == "stop"
    assert whole["finish_reason"] == "length"


def test_an_existing_file_is_not_overwritten_unasked(cli: Cli, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", {"row": 0, "kept": True})
    ran = cli("run", prompts, "-o", results, "--model", tiny_model, *FAST)
    assert ran.code == 2
    assert "exists; --fresh replaces it" in ran.err
    assert read(results) == [{"row": 0, "kept": True}]
    assert cli("run", prompts, "-o", results, "--model", "no-such-model", "--overwrite").code == 2
    assert read(results) == [{"row": 0, "kept": True}]
    assert cli("run", prompts, "-o", results, "--model", tiny_model, *FAST, "--overwrite").code == 0
    assert len(read(results)) == 6
    ran = cli("run", prompts, "-o", prompts, "--model", tiny_model, "--overwrite")
    assert ran.code == 2
    assert len(prompts.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "missing.jsonl", "-o", "out"], "missing.jsonl: No such file or directory"),
        (["run", "prompts.jsonl"], "Missing option '--output'"),
        (["run", "prompts.jsonl", "-o", "no/folder/out"], "there is no folder no/folder"),
        (["run", "prompts.jsonl", "-o", "out", "--model", "no-such-model"], "no-such-model"),
        (["run", "prompts.jsonl", "-o", "out", "--temprature", "1"], "--temperature"),
        (["run", "prompts.jsonl", "-o", "out", "--temperature", "hot"], "--temperature"),
        (["run", "prompts.jsonl", "-o", "out", "--temperature", "-1"], "temperature: expected a number of at least 0"),
        (["run", "prompts.jsonl", "-o", "out", "--logit-bias", "1"], "--logit-bias"),
        (["run", "prompts.jsonl", "-o", "out", "--kv-policy", "snapkv"], "--kv-policy': expected JSON such as"),
        (["run", "prompts.jsonl", "-o", "out", "--kv-policy", '{"type": "h2o"}'], "kv_policy: expected a type of"),
        (["run", "prompts.jsonl", "-o", "out", "--quantization", "int3"], "quantization: expected"),
        (["run", "prompts.jsonl", "-o", "out", "--prompt-template", "{"], "for braces that are text"),
        (["run", "prompts.jsonl", "-o", "out", "--raw", "--system", "x"], "--system"),
        (["run", "prompts.jsonl", "-o", "/dev/full"], "/dev/full: No space left on device"),
        (["run", ".", "-o", "out"], "out is in the folder of the prompts"),
        (["run", "prompts.jsonl", "-o", "out", "--logit-bias", '{"258": 1}'], "token id 258 is not in the vocabulary"),
        (["run", "prompts.jsonl", "-o", "out", "--stop-token-id", "300"], "token id 300 is not in the vocabulary"),
        (["run", "prompts.jsonl", "-o", "out", "--seed", "1" + 20 * "0"], "seed: expected"),
        (["run", "prompts.jsonl", "-o", "out", "--max-num-seqs", "1" + 20 * "0"], "max_num_seqs: expected"),
        (["run", "prompts.jsonl", "-o", "out", "-n", "100000000"], "n: expected"),
        (["run", "prompts.jsonl", "-o", "."], ".: Is a directory"),
        (["run", "prompts.jsonl", "-o", ""], "'--output' / '-o' / '--output-file': expected a value, got an empty one"),
        (["run", "prompts.jsonl", "-o", "out", "--profile", ""], "'--profile': expected a value, got an empty one"),
        (["run", "prompts.jsonl", "-o", "out", "--cache", ""], "'--cache': expected a value, got an empty one"),
        (["run", "prompts.jsonl", "-o", "out", "--model", ""], "'--model': expected a value, got an empty one"),
        (["serve", "--lora-modules", ""], "'--lora-modules': expected a value, got an empty one"),
        (["rn"], "Did you mean 'run'"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    cli: Cli, prompts: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(prompts.parent)
    if arguments[0] == "run" and "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_model)]
    ran = cli(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("pybatch: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert ran.out == ""
    assert not Path("out").exists()


def test_a_limit_on_the_size_of_files_ends_the_job_after_a_whole_row(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "in.jsonl", *({"prompt": f"Say {i}", "pad": "x" * 1000} for i in range(12)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        ran = cli("run", prompts, "-o", tmp_path / "out", "--model", tiny_model, *FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    rows = read(tmp_path / "out")
    assert 0 < len(rows) < 12
    assert (ran.code, ran.err) == (2, f"pybatch: {tmp_path}/out.journal: File too large; {len(rows)} rows are saved\n")


def test_folders_that_cannot_be_written_are_told_before_anything_runs(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    code = """
import sys
from pybatch.cli import main
for flags in ["-o closed/out.jsonl", "-o o --error-file closed/e.jsonl", "-o o --report closed/r.html"]:
    sys.argv = [*sys.argv[:3], *flags.split(), "--model", sys.argv[-1]]
    try:
        main()
    except SystemExit as end:
        print(end.code)
print("torch" in sys.modules)
"""
    (tmp_path / "closed").mkdir(mode=0o555)
    command = [sys.executable, "-P", "-c", code, "run", prompts, tiny_model]
    if os.getuid() == 0:  # whom modes do not keep out, unless without this capability
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.split() == ["2", "2", "2", "False"]
    assert ran.stderr.splitlines() == [
        f"pybatch: closed/{name}: Permission denied" for name in ("out.jsonl.journal", "e.jsonl", "r.html")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "prompts.jsonl"]


def test_a_folder_that_vanishes_ends_the_job(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    results, fifo = tmp_path / "folder" / "out", tmp_path / "fifo"
    os.mkfifo(fifo)

    def produce() -> None:
        with fifo.open("w", buffering=1) as rows:
            rows.write('{"prompt": "Say 1"}\n')
            journal = results.with_name("out.journal")
            while not (journal.exists() and b"Say 1" in journal.read_bytes()):
                time.sleep(0.01)
            shutil.rmtree(results.parent)
            rows.write('{"prompt": "Say 2"}\n')

    producer = threading.Thread(target=produce)
    producer.start()
    ran = cli("run", fifo, "-o", results, "--model", tiny_model, *FAST)
    producer.join()
    expected = f"pybatch: {results}.journal: deleted or replaced while the job was running; 1 rows are saved\n"
    assert (ran.code, ran.err) == (3, expected)


def test_a_step_that_fails_ends_the_job_with_one_line_and_the_rows_before_it(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write(tmp_path / "in.jsonl", *({"prompt": f"Say {i}"} for i in range(4)))
    run, steps = Session.step, iter(range(100))

    def step(self: Session, *arguments: Any, **options: Any) -> None:
        if next(steps) == 12:
            raise MemoryError("no memory for the step")
        run(self, *arguments, **options)

    monkeypatch.setattr(Session, "step", step)
    flags = ["--max-num-seqs", "2", "--ignore-eos", "--policy", "static"]
    ran = cli("run", prompts, "-o", tmp_path / "out", "--model", tiny_model, *FAST, *flags)
    expected = "pybatch: the job cannot go on: MemoryError: no memory for the step; 2 rows are saved\n"
    assert (ran.code, ran.err) == (3, expected)
    assert ["response" in row for row in read(tmp_path / "out")] == [True, True]


def test_memory_that_is_refused_is_one_line(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    command = ["bash", "-c", 'ulimit -v 400000; exec "$@"', "bash", *COMMAND, "run", prompts, "-o", tmp_path / "out"]
    ran = subprocess.run([*command, "--model", tiny_model, *FAST], capture_output=True, text=True)
    assert ran.returncode == 3
    assert ran.stderr.startswith(f"pybatch: {tiny_model}: the model cannot be loaded: ")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_in_an_unforeseen_way_is_wrong_usage(
    cli: Cli, prompts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(arguments: object) -> Session:
        raise KeyError("rope")

    monkeypatch.setattr("pybatch.api.model_handle.open_session", fail)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    ran = cli("run", prompts, "-o", tmp_path / "out", "--model", damaged)
    assert (ran.code, ran.err) == (2, f"pybatch: {damaged}: the model cannot be loaded: KeyError: 'rope'\n")
    assert not (tmp_path / "out").exists()


def test_pipes(tiny_model: Path) -> None:
    rows = "".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(3)) + '{"prompt": null}'
    ran = subprocess.run(
        [*COMMAND, "run", "-", "-o", "-", "--model", tiny_model, *FAST], input=rows, capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    *answered, failed = map(json.loads, ran.stdout.splitlines())
    assert [row["prompt"] for row in answered] == ["Say 0", "Say 1", "Say 2"]
    assert failed["error"] == "line 4: prompt: expected text, got null"
    assert "1 of 4 rows failed: what is wrong with each is in standard output." in ran.stderr
    assert "Summary" in ran.stderr


def test_a_reader_that_goes_away_ends_the_job(tiny_model: Path, prompts: Path) -> None:
    command = [*COMMAND, "run", prompts, "-o", "-", "--model", tiny_model, *FAST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert err == "pybatch: standard output: Broken pipe; 0 rows are saved\n"


def test_a_terminal_gets_a_bar(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    code, shown = on_terminal("run", prompts, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST)
    assert code == 0
    assert "6/6 rows" in shown
    assert "━" in shown
    assert "tok/s · KV " in shown


def test_chat_on_a_terminal(tiny_model: Path) -> None:
    code, shown = on_terminal("chat", "--model", tiny_model, *FAST, typed="Hello\n/what\n/clear\n/exit\n")
    assert code == 0
    assert "expected /clear or /exit" in shown
    assert "Traceback" not in shown


def test_chat_answers_once_where_there_is_no_terminal(tiny_model: Path) -> None:
    ran = subprocess.run(
        [*COMMAND, "chat", "--model", tiny_model, "--system", "Be brief.", *FAST],
        input="Hello",
        capture_output=True,
        text=True,
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    (output,) = LLM(tiny_model, num_kv_blocks=128).chat(messages, SamplingParams(temperature=0, max_tokens=8))
    assert (ran.returncode, ran.stdout) == (0, output.outputs[0].text + "\n")


def test_env(cli: Cli) -> None:
    ran = cli("env", "--json")
    facts = json.loads(ran.out)
    assert ran.code == 0
    assert facts["pybatch"] == pybatch.__version__
    assert facts["isa_chosen"] in facts["isa_possible"]
    assert facts["usable_cores"] >= 1
    assert not facts["cuda"]
    assert "CUDA" in facts["cuda_why"]
    table = cli("env").out
    assert facts["torch"] in table


def test_env_tells_of_an_impossible_isa() -> None:
    ran = subprocess.run(
        [*COMMAND, "env", "--json"], env={**os.environ, "PYBATCH_ISA": "mmx"}, capture_output=True, text=True
    )
    facts = json.loads(ran.stdout)
    assert facts["isa_chosen"] is None
    assert "mmx" in facts["isa_error"]


def test_help_and_version_are_quick(cli: Cli) -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'pandas', 'ray', 'jinja2'}"
    code = f"import sys; from pybatch.cli import main\ntry: main()\nfinally: assert not {heavy} & {{*sys.modules}}"
    ran = subprocess.run([sys.executable, "-P", "-c", code, "run", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "--prompt-template" in ran.stdout
    panels = ["Arguments", "Rows", "Results", "Going on", "Before and during", "Many machines", "Sampling", "Model and"]
    places = [ran.stdout.index(f"─ {panel}") for panel in panels]
    assert places == sorted(places)
    assert cli("--version").out.strip() == pybatch.__version__


def test_the_real_model(smollm2_path: Path, cli: Cli, tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", {"country": "France"}, {"country": "Germany"})
    template = ["--prompt-template", "What is the capital of {country}?"]
    flags = ["--model", "smollm2-135m", "--max-tokens", "12", "--temperature", "0"]
    ran = cli("run", prompts, "-o", tmp_path / "out.jsonl", *template, *flags, "--num-kv-blocks", "64")
    assert ran.code == 0
    assert "is unpacked to float32: --quantization gguf (the file's own bits) or int8 is about 2 to 6 times" in ran.err
    france, germany = read(tmp_path / "out.jsonl")
    assert "Paris" in france["response"]
    assert "Berlin" in germany["response"]
