"""`edgellm run` on the echo backend, and once on a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ANSWER = r"\x1b\[\?2004l"  # the terminal leaves the line editor: what follows is the program's own output
ECHO = ["run", "x", "--backend", "echo", "--temperature", "0"]


def edgellm(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", *arguments], input=stdin or b"", capture_output=True, check=False, timeout=120
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_answer_alone_is_on_stdout() -> None:
    done = edgellm(*ECHO, "grüße 🙂")
    assert (done.stdout, done.stderr, done.returncode) == ("grüße 🙂\n", "", 0)


def test_the_prompt_can_come_from_stdin() -> None:
    for prompt in ([], ["-"]):
        assert edgellm(*ECHO, *prompt, stdin=b"zwei\nZeilen\n").stdout == "zwei\nZeilen\n"
        empty = edgellm(*ECHO, *prompt)
        assert empty.returncode == 2
        assert "standard input is empty" in empty.stderr


def test_standard_input_joins_the_prompt() -> None:
    assert edgellm(*ECHO, "Translate:", stdin="Liebe Grüße\n".encode()).stdout == "Translate:\n\nLiebe Grüße\n"
    assert edgellm(*ECHO, "no more", stdin=b"\n").stdout == "no more\n"
    assert edgellm(*ECHO, "Mark:", stdin=b"\xef\xbb\xbfwith a mark").stdout == "Mark:\n\nwith a mark\n"


@pytest.mark.parametrize("prompt", [[], ["-"], ["Translate:"]])
def test_bytes_that_are_no_text_are_refused(prompt: list[str]) -> None:
    done = edgellm(*ECHO, *prompt, stdin=b"caf\xe9 au lait")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "standard input: not UTF-8" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are text there")
def test_a_prompt_that_is_no_text_is_refused() -> None:
    command = [sys.executable, "-m", "edgellm", *ECHO, b"caf\xe9"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert b"PROMPT is not UTF-8" in done.stderr


def test_json_has_the_promised_keys() -> None:
    done = edgellm(*ECHO, "hello", "--json", "--system", "be kind")
    answer = json.loads(done.stdout)
    assert answer["text"] == "hello"
    assert answer["finish_reason"] == "stop"
    assert set(answer["usage"]) == {"prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"}
    assert set(answer["timings"]) == {
        "load_ms",
        "ttft_ms",
        "prefill_ms",
        "decode_ms",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "drafted",
        "accepted",
    }
    assert set(answer["cache"]) == {
        "from_live",
        "from_memory",
        "from_disk",
        "computed",
        "broke_at",
        "expected",
        "found",
        "reason",
    }
    assert answer["backend"] == "echo"
    assert answer["threads"] == 1
    assert len(answer["tokens"]) == answer["usage"]["completion_tokens"] == 5


def test_zeros_are_given_too() -> None:
    answer = json.loads(
        edgellm("run", "x", "hello", "--backend", "echo", "--seed", "0", "--max-tokens", "0", "--json").stdout
    )
    assert (answer["seed"], answer["finish_reason"], answer["tokens"]) == (0, "length", [])


def test_raw_continues_the_text_and_stats_go_to_stderr() -> None:
    done = edgellm(*ECHO, "continue me", "--raw", "--stats", "--max-tokens", "9", "--stop", "zzz")
    assert done.stdout == "continue\n"
    assert "12 prompt tokens, 9 answered (length)" in done.stderr
    assert "echo (asked for), 1 thread," in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["hi", "--temperature", "-1"], 2, "temperature=-1.0"),
        (["hi", "--ctx", "3"], 2, "ctx=3"),
        (["hi", "--logprobs", "3"], 2, "--json"),
        (["hi", "--raw", "--system", "s"], 2, "--system"),
        (["hi", "--gpu-layers", "some"], 2, 'is not "auto" or a whole number'),
        (["hi", "--no-such-option"], 2, "No such option"),
        (["hi " * 9000], 1, "tokens and the context holds"),
        (["--json"], 2, "standard input is empty"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    done = edgellm(*ECHO, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_missing_model_exits_1_with_traceback_if_verbose() -> None:
    done = edgellm("run", "/nowhere/x.gguf", "hi")
    assert done.returncode == 1
    assert done.stderr.startswith("edgellm: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in edgellm("run", "/nowhere/x.gguf", "hi", "--verbose").stderr
    assert edgellm("run", "no-such:1b", "hi", "--offline").returncode == 1


def test_help_of_a_command() -> None:
    assert edgellm("help", "run").stdout == edgellm("run", "--help").stdout
    assert edgellm("help", "cache", "ls").stdout.startswith("Usage: edgellm cache ls")
    assert edgellm("help").stdout == edgellm("--help").stdout
    assert edgellm("help", "nonsense").returncode == 2
    assert "Did you mean run?" in edgellm("rn").stderr


def test_a_checkpoint_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in (tmp_path, tmp_path / "model.safetensors"):
        for command in (["run", str(name), "hi"], ["show", str(name)]):
            done = edgellm(*command)
            assert done.returncode == 1
            assert f"edgellm convert {tmp_path} -o model.gguf" in done.stderr


def test_version_and_help() -> None:
    assert edgellm("--version").stdout.startswith("edgellm, version 0.")
    assert "doctor" in edgellm("--help").stdout
    assert edgellm("nonsense").returncode == 2


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    command = f"{sys.executable} -m edgellm {' '.join(ECHO)} {'word ' * 400!r} | head -c 5"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "word "
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_during_a_long_prefill_exits_130(smollm2: Path) -> None:
    text = "The river runs through the valley and over the stones. " * 600
    child = subprocess.Popen(
        [sys.executable, "-m", "edgellm", "run", str(smollm2), "--max-tokens", "5", text[:33000]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(2)
    assert child.poll() is None, child.communicate()
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert (out, err) == (b"", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
class TestConversation:
    @pytest.fixture
    def terminal(self, tmp_path: Path) -> object:
        import pexpect

        child = pexpect.spawn(
            sys.executable,
            ["-m", "edgellm", *ECHO],
            env={
                **os.environ,
                "EDGELLM_HOME": str(tmp_path / "home"),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "VISUAL": "sed -i s/second/2nd/",
            },
            dimensions=(40, 100),
            timeout=30,
            encoding="utf-8",
        )
        child.expect("lists the commands")
        yield child
        child.close(force=True)

    def test_it_answers_remembers_and_leaves(self, terminal: object, tmp_path: Path) -> None:
        import pexpect

        assert isinstance(terminal, pexpect.spawn)
        for line, expected in (
            ("first question", ANSWER + "first question\r\n"),
            ("/stats", r"\(\d+ reused|\d+ prompt tokens"),
            (f"/save {tmp_path}/talk.json", "saved 2 messages"),
            ("/reset", "forgotten"),
            (f"/load {tmp_path}/talk.json", "loaded 2 messages"),
            ("/load /no/such/file", "No such file"),
            ("/system Be brief.", "replaced"),
            ("/system", "Be brief."),
            ("/nonsense", "is not a command"),
            ("/help", "Ctrl-C stops an answer"),
            ("/set top_k 5", "top_k = 5"),
            ("/set top-k", "top_k = 40"),
            ("/set top_k some", "is not a whole number"),
            ("/set top_k -3", "at least 0"),
            ("/set nonsense 1", "no option"),
            ("/set ctx 5", "when the model is loaded"),
            ("/set", "xtc_threshold"),
            ("/think", "thinking: auto"),
            ("/think on", "knows of none"),
            ("/think maybe", "/think auto"),
            ("second", ANSWER + "second\r\n"),
            ("/show", r"turns: 2"),
            ("/retry", ANSWER + "second\r\n"),
            ("/edit", ANSWER + "2nd\r\n"),
            ("/drop", r"the oldest turn was left out"),
            ("/show", r"turns: 1, and 1 left out"),
            ("/drop 7", "there are no older turns"),
            ("/drop no", "how many"),
            ("/stats", r"first token after"),
            ("/help", r"in an editor \(\$EDITOR\)"),
        ):
            terminal.expect(">")
            terminal.send(line + "\r")
            terminal.expect(expected)
        saved = json.loads((tmp_path / "talk.json").read_text())
        assert [message["content"] for message in saved["messages"]] == ["first question", "first question"]
        terminal.send("/bye\r")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0
        assert not (tmp_path / "home" / "history").exists()  # nothing is kept unasked

    def test_several_lines_make_one_message(self, terminal: object) -> None:
        import pexpect

        assert isinstance(terminal, pexpect.spawn)
        terminal.expect(">")
        terminal.send("line one\\\rline two\x1b\rline three\r")
        terminal.expect("line one\r\nline two\r\nline three\r\n")

    def test_quotes_hold_several_lines(self, terminal: object) -> None:
        import pexpect

        assert isinstance(terminal, pexpect.spawn)
        terminal.expect(">")
        terminal.send('"""one\rtwo\rthree"""\r')
        terminal.expect(ANSWER + "one\r\ntwo\r\nthree\r\n")

    def test_a_full_context_offers_a_way_out(self, terminal: object) -> None:
        import pexpect

        assert isinstance(terminal, pexpect.spawn)
        long = "word " * 700  # 3,500 of the echo model's tokens, of 8,192
        terminal.expect(">")
        terminal.send(f"{long}\r")
        terminal.expect("word\r\n")
        terminal.send(f"{long}\r")
        terminal.expect(r"Leave the oldest turns out and go on\? \[Y/n\]")
        terminal.send("n\r")
        terminal.expect("/drop N leaves out")
        terminal.send(f"{long}\r")
        terminal.expect(r"\[Y/n\]")
        terminal.send("\r")
        terminal.expect(r"the oldest turn was left out")

    def test_ctrl_c_twice_leaves(self, terminal: object) -> None:
        import pexpect

        assert isinstance(terminal, pexpect.spawn)
        terminal.expect(">")
        terminal.send("\x03")
        terminal.expect("again leaves")
        terminal.send("text\r")
        terminal.expect(ANSWER + "text\r\n")
        terminal.send("\x03")
        terminal.expect("again leaves")
        terminal.send("\x03")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0
