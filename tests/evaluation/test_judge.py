"""The judge: asked before anything that takes long, its key kept, its answers and refusals read."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest

from goat_jax.cli.main import main
from goat_jax.cli.verbs import evaluate
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation import judge_client as module
from goat_jax.evaluation.journal import Journal
from goat_jax.evaluation.judge_client import Judge, ask, check_judge, grade, read_key
from goat_jax.evaluation.sampler import Answer

QUESTION = ("81", "writing", ["Why?"], ["So."])


class FakeJudge(BaseHTTPRequestHandler):
    """Plays a list of replies (status, body, headers); the last one again and again."""

    replies: ClassVar[list] = []
    seen: ClassVar[list] = []

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers.get("Authorization"), sent))
        status, body, headers = self.replies[min(len(self.seen), len(self.replies)) - 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def do_GET(self):
        self.seen.append((self.path, self.headers.get("Authorization"), None))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format, *args):
        pass


def reply(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def refusal(status, message="", param=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message, "param": param}}, named


YES = reply("Yes.")


@pytest.fixture
def judge_at(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # not asked, or everything fails
    servers = []

    def start(*replies):
        handler = type("Judge", (FakeJudge,), {"replies": list(replies), "seen": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/v1", handler.seen

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def judge(url, **more):
    given = {"wait": 0.0, "timeout": 30.0, "sleep": lambda seconds: None} | more
    return Judge(url, "grader", **given)


# The requests, and the answers that are read


def test_failures_are_tried_again(judge_at):
    url, seen = judge_at(
        (500, b"no", {}), (200, b"<html>", {}), (200, {"choices": []}, {}), YES, reply("[[7]]")
    )
    found = grade(judge(url, attempts=5), *QUESTION)
    assert found.score == 7.0 and not found.error and len(seen) == 5


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((500, b"", {}), "HTTP 500"),
        ((429, b"", {}), "HTTP 429"),
        ((200, b"<html>", {}), "its answer"),
        ((200, b"[" * 100_000, {}), "its answer"),
        ((200, b"\xff\xfe", {}), "its answer"),
        ((200, b"", {}), "its answer"),
        ((200, {"error": "busy"}, {}), "no choices"),
        ((200, {"choices": [{"message": {"content": None}}]}, {}), "NoneType, not text"),
        (reply("I would say [[eleven]]"), "no grade"),
        (reply("[[11]]"), "no grade"),
        (reply("<think>[[5]]"), "no grade"),
    ],
)
def test_what_stays_rubbish_is_unscored_never_a_score(judge_at, answer, says):
    url, seen = judge_at(answer)
    waits = []
    found = grade(judge(url, attempts=3, sleep=waits.append, wait=1.0), *QUESTION)
    assert found.score is None and says in found.error
    assert len(seen) == 3 and waits == [1.0, 2.0]


def test_the_time_that_the_endpoint_asks_for_is_waited_within_a_bound(judge_at):
    times = ["7", "1.5", "9999", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "nan", "-3", "1e9"]
    answers = [refusal(429, Retry_After=each) for each in times]
    url, _ = judge_at(*answers, reply("[[7]]"))
    waits = []
    found = grade(judge(url, attempts=9, sleep=waits.append), *QUESTION)
    assert found.score == 7.0
    assert waits == [7.0, 1.5, module.LONGEST_WAIT, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_newer_models_are_asked_as_they_want_to_be(judge_at):
    url, seen = judge_at(
        refusal(400, "'max_tokens' is unknown, use 'max_completion_tokens'.", "max_tokens"),
        refusal(400, "'temperature' does not support 0 with this model."),
        reply("[[7]]"),
    )
    own = judge(url, attempts=1)
    assert grade(own, *QUESTION).score == 7.0 and grade(own, *QUESTION).score == 7.0
    settings = [sorted(sent.keys() - {"model", "messages"}) for _, _, sent in seen]
    assert settings == [
        ["max_tokens", "temperature"],
        ["max_completion_tokens", "temperature"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]


def test_a_model_that_refuses_every_field_is_not_asked_for_ever(judge_at):
    url, seen = judge_at(refusal(400, "max_tokens, max_completion_tokens and temperature"))
    found = grade(judge(url), *QUESTION)
    assert found.score is None and "HTTP 400" in found.error and len(seen) == 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_repeated(judge_at, status):
    url, seen = judge_at(refusal(status, "the context is too long"))
    found = grade(judge(url), *QUESTION)
    assert found.score is None and len(seen) == 1
    assert found.error == f"HTTP {status}: the context is too long"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_for_good_stops_at_once(judge_at, status):
    url, seen = judge_at(refusal(status))
    with pytest.raises(RunFailed, match=f"answers {status}"):
        ask(judge(url), [{"role": "user", "content": "x"}])
    assert len(seen) == 1


def test_an_answer_without_end_is_not_read(judge_at, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1000)
    url, _ = judge_at(reply("[[7]]" * 1000))
    assert "more than 1000 bytes" in grade(judge(url, attempts=1), *QUESTION).error


# The key


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_to_its_own_host_and_nowhere_else(judge_at, status):
    other, elsewhere = judge_at(reply("[[10]]"))
    url, seen = judge_at(refusal(status, Location=f"{other}/chat/completions"))
    with pytest.raises(RunFailed, match=f"answers {status}: it has moved to {other}"):
        grade(judge(url, key="sk-secret"), *QUESTION)
    assert [key for _, key, _ in seen] == ["Bearer sk-secret"] and not elsewhere


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://judge.example/v1", "http would send the key unencrypted"),
        ("http://10.0.0.1/v1", "http would send the key unencrypted"),
        ("http://127.0.0.1.example/v1", "http would send the key unencrypted"),
        ("https://user:own-word@judge.example/v1", "holds a name or a password"),
        ("https://judge.example/v1?key=x", "has a query"),
        ("https://judge.example/v1#x", "has a query"),
        ("https://", "is not an address"),
        ("ftp://judge.example", "is not an address"),
        ("https://judge.example:x/v1", "is not an address"),
        ("https://judge.example/v 1", "is not an address"),
        ("https://[x/v1", "is not an address"),
    ],
)
def test_addresses_that_would_lose_it_are_refused(url, says):
    with pytest.raises(UserError, match=says) as caught:
        judge(url, key="sk-secret")
    assert not any(secret in str(caught.value) for secret in ("sk-secret", "own-word"))


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://[::1]/v1", "https://x.example"])
def test_addresses_that_keep_it_are_not(url):
    assert "sk-secret" not in repr(judge(url, key="sk-secret"))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"sk-secret", "sk-secret"),
        (b"\n sk-secret\r\n\n", "sk-secret"),
        (b"\xef\xbb\xbfsk-secret\n", "sk-secret"),
        (b"sk-secret\nsk-other\n", None),
        (b"sk-se\rcret", None),
        (b"Bearer sk-secret", None),
        (b"sk-secret\0", None),
        ("sk-secr\u00e9t".encode(), None),
        (b"\xff\xfesk-secret", None),
        (b"\n", None),
    ],
    ids=range(10),
)
def test_a_key_file_is_read_properly_or_refused(tmp_path, content, key):
    (tmp_path / "key").write_bytes(content)
    if key is not None:
        assert read_key(tmp_path / "key") == key
        return
    with pytest.raises(UserError) as caught:
        read_key(tmp_path / "key")
    assert "secr" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_key_that_an_endpoint_repeats_is_not_kept(judge_at):
    url, _ = judge_at(refusal(400, "bad key sk-secret"), reply("sk-secret [[7]]"))
    own = judge(url, key="sk-secret", attempts=2)
    refused, graded = grade(own, *QUESTION), grade(own, *QUESTION)
    assert refused.error == "HTTP 400: bad key [key]" and graded.judgment == "[key] [[7]]"


@pytest.mark.parametrize("key", ["a\nb", "a b", "\u00e9"])
def test_a_key_that_is_none_is_refused_without_being_shown(key):
    with pytest.raises(UserError, match="the judge's key is not one line"):
        judge("https://x.example", key=key)


# The whole evaluation, with a stand-in for the model


class Model:
    """Answers every prompt with its number, and counts."""

    name, step, opened, batches = "tiny", None, 0, 0

    def open(self, *arguments):
        self.opened += 1
        return self

    def digest(self):
        return "weights"

    def generator(self):
        return SimpleNamespace(tokenizer=None, encode=list, complete=self.complete)

    def complete(self, prompts, sampling):
        self.batches += 1
        return [Answer(f" said in batch {self.batches} ", cut=n == 0) for n in range(len(prompts))]


@pytest.fixture
def model(monkeypatch):
    own = Model()
    monkeypatch.setattr(evaluate, "load_eval_model", own.open)
    return own


@pytest.fixture
def asked(tmp_path, capsys):
    """Runs the command with a judge: (exit code, what it printed as JSON, its one line)."""
    rows = [
        {"question_id": 81 + n, "category": each, "turns": ["Say a.", "Again."]}
        for n, each in enumerate(["writing", "math", "stem"])
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "question.jsonl").write_text(text)
    (tmp_path / "key").write_text("sk-secret\n")

    def run(url, *more):
        own = ["--judge", url, "--judge-model", "grader", "--judge-key", str(tmp_path / "key")]
        task = ["--task", f"mt_bench:questions={tmp_path / 'question.jsonl'}"]
        where = ["--out", str(tmp_path / "out"), "--quiet", "--json", "--wait", "0"]
        code = main(["evaluate", "tiny", *task, *own, *where, *more])
        printed = capsys.readouterr()
        return code, [json.loads(line) for line in printed.out.splitlines()], printed.err.strip()

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything_in(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_both_turns_are_answered_and_graded(model, asked, judge_at, tmp_path):
    url, seen = judge_at(YES, *[reply(f"Reasons. [[{n}]]") for n in (2, 4, 6, 8, 3, 7)])
    code, (found,), _ = asked(url)
    assert code == 0 and found["scores"] == pytest.approx(
        {
            "score": 5.0,
            "score/turn_1": 11 / 3,
            "score/turn_2": 19 / 3,
            "unscored": 0.0,
            "cut_answers": 1.0,
        }
    )
    answers, judgments = (lines_of(tmp_path / "out" / f"mt_bench-judge-{n}.jsonl") for n in
                          ("answers", "judgments"))  # fmt: skip
    assert [a["question_id"] for a in answers] == [81, 82, 83]
    assert all(len(a["choices"][0]["turns"]) == 2 for a in answers)
    assert all(a["cut"] == [True, True] for a in answers)
    assert [(j["question_id"], j["turn"], j["score"]) for j in judgments[:2]] == [
        (81, 1, 2.0),
        (81, 2, 4.0),
    ]
    path, key, sent = seen[2]
    assert (path, key, sent["model"]) == ("/v1/chat/completions", "Bearer sk-secret", "grader")
    told = sent["messages"][1]["content"]
    assert "Say a." in told and "Again." in told and answers[0]["choices"][0]["turns"][1] in told
    assert "sk-secret" not in everything_in(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*so-far*"))


@pytest.mark.parametrize(
    "answer",
    [
        refusal(401),
        refusal(403),
        refusal(404),
        refusal(400, "no such thing"),
        refusal(307, Location="https://other.example/v1/chat/completions"),
        (503, b"", {}),
        (200, b"<html>", {}),
    ],
    ids=["401", "403", "404", "400", "moved", "busy", "no-protocol"],
)
def test_the_judge_is_asked_before_the_model_is_loaded(model, asked, judge_at, tmp_path, answer):
    url, _ = judge_at(answer)
    code, printed, line = asked(url, "--attempts", "2")
    assert code == 1 and not printed and model.opened == 0
    assert len(line.splitlines()) == 1 and url in line and "sk-secret" not in line
    assert not (tmp_path / "out").exists()


def test_nobody_there_is_found_out_as_early(model, asked, judge_at):
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeJudge) as server:
        port = server.server_address[1]
    code, _, line = asked(f"http://127.0.0.1:{port}/v1", "--attempts", "2")
    assert code == 1 and "does not answer: URLError" in line and model.opened == 0


def test_answers_and_grades_are_kept_as_they_come(model, asked, judge_at, tmp_path):
    """The endpoint refuses in the middle; the same command asks for the rest only."""
    url, seen = judge_at(
        YES, reply("[[1]]"), reply("[[2]]"), refusal(403), YES,
        *[reply(f"[[{n}]]") for n in (3, 4, 5, 6)],
    )  # fmt: skip
    code, printed, line = asked(url)
    assert code == 1 and not printed and "answers 403" in line and len(seen) == 4
    (kept,) = (tmp_path / "out").iterdir()
    lines = kept.read_text().splitlines(keepends=True)
    assert all(each.endswith("\n") and json.loads(each) for each in lines)
    batches = model.batches
    assert len(lines) == 1 + batches + 2
    with kept.open("a") as file:
        file.write('{"key": "torn')
    code, (_found,), _ = asked(url)
    assert code == 0 and model.batches == batches and len(seen) == 4 + 1 + 4
    judgments = lines_of(tmp_path / "out" / "mt_bench-judge-judgments.jsonl")
    assert [each["score"] for each in judgments] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert not kept.exists()


def test_other_weights_or_another_judge_take_nothing_over(model, asked, judge_at, monkeypatch):
    url, seen = judge_at(YES, reply("[[1]]"), refusal(403), YES, reply("[[2]]"))
    assert asked(url)[0] == 1
    batches = model.batches
    assert asked(url, "--judge-model", "other")[0] == 0
    assert model.batches == batches and len(seen) == 3 + 1 + 6
    monkeypatch.setattr(model, "digest", lambda: "others")
    assert asked(url)[0] == 0 and model.batches == 2 * batches


def test_a_judge_that_never_grades_ends_with_one_line(model, asked, judge_at, tmp_path):
    url, _ = judge_at(reply("It is fine."))
    code, (found,), line = asked(url, "--attempts", "2")
    assert code == 1 and found["scores"] == {"unscored": 6.0, "cut_answers": 1.0}
    assert line == (
        "goat-jax: error: the judge graded none of 6 turns: no grade from 1 to 10 in its answer"
    )
    judgments = lines_of(tmp_path / "out" / "mt_bench-judge-judgments.jsonl")
    assert all(each["score"] is None and each["error"] for each in judgments)
    batches = model.batches
    better, _ = judge_at(YES, reply("[[5]]"))
    assert asked(better)[0] == 0 and model.batches == batches


# What is kept


def test_a_journal_of_other_settings_or_damaged_lines_is_no_help_and_no_harm(tmp_path):
    path = tmp_path / "so-far.jsonl"
    Journal(path, "one").put(["a"], 1)
    assert Journal(path, "one").get(["a"]) == 1
    path.write_bytes(path.read_bytes() + b'[1]\n{"key": 3}\n{"key": "x", "result"')
    again = Journal(path, "one")
    again.put(["b"], 2)
    assert Journal(path, "one").get(["a"]) == 1 and Journal(path, "one").get(["b"]) == 2
    other = Journal(path, "two")
    assert other.get(["a"]) is None and Journal(path, "one").get(["a"]) == 1
    other.put(["a"], 3)
    assert Journal(path, "two").get(["a"]) == 3 and Journal(path, "one").get(["a"]) is None
    path.write_bytes(b"\xff\xfe\n")
    assert Journal(path, "one").get(["a"]) is None


def test_a_check_asks_once(judge_at):
    url, seen = judge_at(YES)
    check_judge(judge(url))
    assert len(seen) == 1 and len(json.dumps(seen[0][2])) < 200
