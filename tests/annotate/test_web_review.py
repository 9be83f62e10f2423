"""The review pages' figures and report, and ``winsome serve``."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from web_studio import make_studio, sign_in

from annotate.commands import serve as serve_command
from annotate.records import Run
from annotate.store import PreferenceStore, Submission
from annotate.web import figures
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
    start = datetime(2026, 1, 1, 23, tzinfo=UTC)
    for index, outcome in enumerate(("all_bad", "all_equal", "skip")):
        now = start + timedelta(hours=index)
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
    events = store.label_events()
    assert [event.annotator for event in events] == ["mei", "jonas", "mei"]
    assert store.label_events(since=start + timedelta(hours=1)) == events[1:]
    table = figures.answers_by_question(events).set_index("question")
    assert table["all"].to_dict() == {
        "overall": 1, "aesthetics": 1, "instruction": 1, "detail": 0,
    }  # fmt: skip
    assert table.loc["instruction", "skip"] == 1
    assert figures.answers_by_day(events)["day"].tolist() == ["2026-01-01", *["2026-01-02"] * 2]
    people = figures.answers_by_person(events).set_index("name")
    assert people["median s"].to_dict() == {"jonas": 2.0, "mei": 2.0}
    assert "**3** answers" in figures.headline(store, events)
    assert figures.answers_by_day([]).empty


def test_curves_of_a_run_that_is_being_written(tmp_path):
    run = Run(id="r", kind="sft", folder=str(tmp_path))
    assert figures.read_curves(run) == {}
    rows = [
        '{"step": 0, "loss": 2, "kl": NaN, "ok": true, "name": "x"}',
        '{"step": 1, "loss": 1.5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 2, "lo']))
    assert figures.read_curves(run) == {"loss": [(0, 2.0), (1, 1.5)]}
    assert figures.metric_names([run]) == ["loss"]

    long = "\n".join(f'{{"step": {step}, "loss": {step}}}' for step in range(5000))
    (tmp_path / "metrics.jsonl").write_text(long)
    table = figures.curve_table([run], "loss")
    assert len(table) <= figures.MAX_POINTS + 1
    assert table["step"].iloc[-1] == 4999
    assert figures.curve_table([run], None).empty


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
