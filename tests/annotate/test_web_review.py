"""The review pages' figures and report, and ``winsome serve``."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from review_studio import RUN, make_run
from web_studio import make_studio, sign_in

from annotate.commands import serve as serve_command
from annotate.records import Question, Run
from annotate.schema import Outcome
from annotate.store import PreferenceStore, Submission
from annotate.store.models import LabelEvent
from annotate.web import runs, throughput
from annotate.web.app import create_app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PreferenceStore]:
    with make_studio(tmp_path / "studio", counts=(4, 3, 2)) as store:
        yield store


def test_report_is_shut_into_a_sandbox(store, tmp_path):
    client = sign_in(create_app(store), "eva")
    assert client.get("/api/review").json() == {"has_report": False}
    assert client.get("/review/report").status_code == 404
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    assert client.get("/api/review").json() == {"has_report": True}
    answer = client.get("/review/report")
    assert answer.text == "<h1>Report</h1>"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy


def test_counts_by_question_day_and_person(store):
    start = datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
    for index, outcome in enumerate(("all_bad", "all_equal", "skip")):
        now = start + timedelta(minutes=20 * index)
        user = store.user(("mei", "jonas", "mei")[index])
        claim = store.claim(user.id, now=now)
        submission = Submission(
            idempotency_key=f"{index:08}",
            assignment_id=claim.assignment_id,
            lease_token=claim.lease_token,
            outcome=outcome,
            active_ms=1000 * (index + 1),
        )
        store.submit(user.id, submission, now=now)
    events, counts = store.label_events(), store.answer_counts()
    assert [event.annotator for event in events] == ["mei", "jonas", "mei"]
    assert store.label_events(since=start + timedelta(minutes=1)) == events[1:]
    table = {row["question"]: row for row in throughput.outcome_rows(counts)}
    assert {name: row["all"] for name, row in table.items()} == {
        "overall": 1, "aesthetics": 1, "instruction": 1, "detail": 0,
    }  # fmt: skip
    assert table["instruction"]["skip"] == 1
    days = {row["day"]: sum(v for v in row.values() if v != row["day"]) for row in
            throughput.day_rows(counts)}  # fmt: skip
    assert days == {"2026-01-01": 2, "2026-01-02": 1}
    people = {row["name"]: row["median s"] for row in throughput.person_rows(counts, events)}
    assert people == {"jonas": 2.0, "mei": 2.0}


def test_fatigue_counts_from_the_last_break():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = [
        (0, "picked"),
        (4, "picked"),
        *((4 * n, "skip") for n in range(2, 5)),
        (40, "picked"),
    ]
    events = [
        LabelEvent(at + timedelta(minutes=m), "mei", Question.OVERALL, Outcome(o), 1000 * (m + 1))
        for m, o in minutes
    ]
    assert throughput.fatigue_rows(events) == [
        {"minutes from": 0, "answers": 5, "median s": 9.0, "skipped or flagged": 0.4},
        {"minutes from": 15, "answers": 1, "median s": 17.0, "skipped or flagged": 1.0},
    ]  # the answer after a break of more than five minutes begins a sitting
    assert throughput.fatigue_rows([]) == []


def test_curves_of_a_run_that_is_being_written(tmp_path):
    run = Run(id="r", kind="sft", folder=str(tmp_path))
    assert runs.read_curves(run) == {}
    rows = [
        '{"step": 0, "loss": 2, "kl": NaN, "ok": true, "name": "x"}',
        '{"step": 1, "loss": 1.5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 2, "lo']))
    curves = runs.read_curves(run)
    assert curves == {"loss": [(0, 2.0), (1, 1.5)]}
    (chart,) = runs.charts(curves)
    assert (chart["chart"], chart["metrics"]) == ("loss", ["loss"])
    points = runs.thinned([(step, 0.5) for step in range(5000)])
    assert len(points) <= runs.MAX_POINTS + 1
    assert points[-1][0] == 4999


def test_alarms_are_read_from_what_the_run_wrote(tmp_path):
    run = Run(id="r", kind="grpo", folder=str(tmp_path))
    rows = [
        {"step": s, "reward": s, "monitor/gold": -s, "monitor/grid_8/drift": s / 10,
         "monitor/alarms": float(s >= 8)}
        for s in range(10)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    info = {"chosen_alarm": {"step": 4, "rise": 0.12, "limit": 0.1}, "steps": 9,
            "hacking_alarm": "rollout 9: grid_8 has drifted"}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert runs.is_watched(runs.read_curves(run))
    found = runs.alarms(run, runs.read_curves(run))
    assert [(a.kind, a.step, a.detail) for a in found] == [
        ("stopped", 9, "rollout 9: grid_8 has drifted"),
        ("monitor", 8, "grid_8 +0.80"),
        ("chosen", 4, "+12.0%"),
        ("gold", None, "reward +8, gold -8"),
    ]
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "run.json").write_text("torn {")
    assert runs.alarms(run, {}) == []
    assert not runs.is_watched({"reward": [(1, 0.5)]})


@pytest.fixture
def run_client(store, tmp_path):
    folder = make_run(tmp_path / "run")
    store.add_run(Run(id=RUN, kind="grpo", folder=str(folder)))
    (tmp_path / "secret.png").write_bytes(b"secret")
    return sign_in(create_app(store), "eva")


def test_samples_are_served_by_name_alone(run_client, tmp_path):
    found = run_client.get("/api/review/run", params={"run": RUN}).json()
    assert found["grid"]["sets"] == ["step-2", "step-10"]
    assert str(tmp_path) not in str(found)
    sha256 = found["grid"]["rows"][0]["images"][1]
    asked = {"run": RUN, "set": "step-10", "image": sha256}
    image = run_client.get("/api/review/run/image", params=asked)
    assert image.headers["content-type"] == "image/png"
    assert b"drawn by" not in image.content  # text chunks are gone
    link = tmp_path / "run" / "samples" / "step-10" / "images" / f"{'a' * 64}.png"
    link.symlink_to(tmp_path / "secret.png")
    for change in (
        {"image": "../../../../secret"}, {"image": "a" * 64}, {"image": sha256.upper()},
        {"set": ".."}, {"set": "../run/samples/step-10"}, {"run": "none"},
    ):  # fmt: skip
        answer = run_client.get("/api/review/run/image", params=asked | change)
        assert answer.status_code == 404, change
        assert b"secret" not in answer.content


def test_a_bad_file_is_left_out_of_the_page_and_named(run_client, tmp_path):
    folder = tmp_path / "run"
    (folder / "samples" / "step-2" / "prompts.jsonl").unlink()
    with (folder / "samples" / "step-10" / "candidates.jsonl").open("ab") as file:
        file.write(b'{"id": "half')
    deep = b"[" * 100_000
    good = b'{"step": 1, "loss": 1.5}\n'
    broken = (b'{"step": 2, "loss": "\xff"}', b'{"step": 3, "loss": ' + b"9" * 400 + b"}", deep)
    (folder / "metrics.jsonl").write_bytes(good + b"\n".join(broken) + b"\n")
    (folder / "run.json").write_bytes(b'{"hacking_alarm": "\xff"}')
    (folder / "report.json").write_text('{"reliability": [[1]], "ece": NaN}')
    answer = run_client.get("/api/review/run", params={"run": RUN})
    assert answer.status_code == 200
    found = answer.json()
    assert found["charts"][0]["series"][0]["points"] == [[1, 1.5]]
    named = set(found["unreadable"])
    assert {"metrics.jsonl:2", "metrics.jsonl:3", "metrics.jsonl:4", "run.json"} < named
    assert "samples/step-2/prompts.jsonl" in named
    assert any(name.startswith("samples/step-10/candidates.jsonl:") for name in named)
    for table in ("grid", "curves", "reliability"):
        got = run_client.get(f"/api/review/run/{table}.csv", params={"run": RUN})
        assert got.status_code == 200, table


def test_blind_tasks_are_sent_by_those_who_may(run_client, store):
    asked = {"run": RUN, "first": "step-10", "second": "step-2", "annotators": 2}
    rita = sign_in(create_app(store), "rita")
    assert rita.post("/api/review/run/blind", json=asked).status_code == 403
    assert store.tasks(kind="blind-ab") == []
    for _ in range(2):  # asked again, nothing doubles
        answer = run_client.post("/api/review/run/blind", json=asked)
        assert answer.json() == {"tasks": 2, "same": 0}
    tasks = store.tasks(kind="blind-ab")
    assert [len(task.candidate_ids) for task in tasks] == [2, 2]
    same = run_client.post("/api/review/run/blind", json=asked | {"second": "step-10"})
    assert (same.status_code, same.json()["code"]) == (400, "same_samples")
    unknown = run_client.post("/api/review/run/blind", json=asked | {"first": "step-3"})
    assert unknown.status_code == 404
    csv = run_client.get("/api/review/run/grid.csv", params={"run": RUN}).text
    assert csv.splitlines()[0] == "prompt,noise,step-2,step-10"


def serve(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    serve_command.add_arguments(parser)
    serve_command.run(parser.parse_args(arguments))


def test_serving_nothing_or_a_taken_port_says_what_to_do(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="winsome store init"):
        serve(str(tmp_path / "nowhere"), "--port", "0")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} .* is taken; .*--port 0"):
            serve(str(tmp_path / "studio"), "--port", str(port))


def test_a_studio_without_users_gets_one_admin_and_shows_the_password_once(tmp_path, capsys):
    with PreferenceStore.open(tmp_path / "empty") as store:
        serve_command.make_first_admin(store)
        password = capsys.readouterr().out.split("the password ")[1].split()[0]
        assert store.authenticate("admin", password).role == "admin"
        serve_command.make_first_admin(store)
        assert capsys.readouterr().out == ""
        assert [user.name for user in store.users()] == ["admin"]
