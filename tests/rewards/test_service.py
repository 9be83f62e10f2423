"""The reward service, over real sockets on the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from PIL import Image
from red_scorer import HEALTH, ITEMS, QUICK, Red, hasty, item, truth

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.service.cache import ScoreCache, cache_key
from rewards.service.client import ClientSettings, RemoteScorer, ServiceError
from rewards.service.schema import (
    Health,
    SchemaError,
    ScoreRequest,
    ScoreResponse,
    WireItem,
    encode_png,
    parse,
)
from rewards.service.server import RewardServer, ServerSettings


@pytest.fixture
def scorer():
    return Red()


@pytest.fixture
def server(scorer):
    with RewardServer(lambda: [scorer]) as server:
        server.wait_until_ready()
        yield server


def test_scores_come_back_as_they_were_given(server):
    remote = RemoteScorer(server.url, settings=QUICK)
    assert remote.spec == Red.spec
    mixed = [*ITEMS, item(7, "refuse"), item(8, "not mine")]
    assert remote.score(mixed) == [truth(each) for each in mixed]
    assert remote.score([]) == []
    [score] = remote.score([RewardItem("x", "g", "p")])
    assert "needs an image" in str(score.error)


def test_a_scorer_that_raises_is_an_error_of_those_items_and_the_server_lives(server):
    remote = RemoteScorer(server.url, settings=ClientSettings(attempts=1, batch_size=1))
    bad, good = remote.score([item(1, "explode"), item(2)])
    assert bad.value is None
    assert "scorer 'red' failed: RuntimeError: out of memory" in str(bad.error)
    assert good.value == 3.0


def test_what_is_known_is_not_asked_again(server, scorer, tmp_path):
    path = tmp_path / "scores.sqlite"
    first = RemoteScorer(server.url, settings=QUICK, cache=ScoreCache(path=path)).score(ITEMS)
    calls = scorer.calls
    again = RemoteScorer(server.url, settings=QUICK, cache=ScoreCache(path=path))
    assert again.score(ITEMS) == first
    assert scorer.calls == calls
    again.score([item(200, "refuse")])
    again.score([item(200, "refuse")])  # an error is asked again
    assert scorer.calls == calls + 2


class Rank:
    """Scores an image's place in its group by red."""

    spec = ScorerSpec("rank", "1", (), frozenset({"image"}), "pixels", groupwise=True)

    def __init__(self):
        self.sizes = []

    def score(self, items):
        self.sizes.append(len(items))
        reds = {i: (item.group_id, item.image.getpixel((0, 0))[0]) for i, item in enumerate(items)}
        return [
            Score(float(sum(group == g and red > r for g, r in reds.values())))
            for group, red in reds.values()
        ]


def test_a_group_stays_together_and_is_not_cached_where_scores_depend_on_it():
    rank = Rank()
    mixed = [replace(item(index), group_id="abaab"[index]) for index in range(5)]
    with RewardServer(lambda: [rank]) as server:
        server.wait_until_ready()
        remote = RemoteScorer(server.url, settings=QUICK, cache=ScoreCache())
        assert remote.spec == Rank.spec
        assert [score.value for score in remote.score(mixed)] == [0, 0, 1, 2, 1]
        assert sorted(rank.sizes) == [2, 3]  # whatever the batch size
        assert [score.value for score in remote.score(mixed[2:])] == [0, 1, 0]


class Sources:
    """Keeps what it is sent; scores by the sizes of the source images, in their order."""

    spec = ScorerSpec("sources", "1", (), frozenset({"image"}), "pixels")

    def __init__(self):
        self.items = []

    def score(self, items):
        self.items += items
        return [
            Score(sum(10.0**place * image.width for place, image in enumerate(item.source_images)))
            for item in items
        ]


def test_source_images_arrive_as_they_were_sent_and_are_part_of_what_is_known(tmp_path):
    ramp = Image.new("RGB", (300, 5))
    ramp.putdata([(x % 256, x // 256, 7) for x in range(300 * 5)])
    first, second = ramp.crop((0, 0, 3, 5)), ramp.crop((0, 0, 8, 5))
    asked = [
        replace(item(1), sample_id=str(index), source_images=sources)
        for index, sources in enumerate(
            ((first, second), (second, first), (first,), (), (ramp, first))
        )
    ]
    scorer = Sources()
    (tmp_path / "torn.png").write_bytes(encode_png(ramp)[:70])
    with RewardServer(lambda: [scorer]) as server, Image.open(tmp_path / "torn.png") as torn:
        server.wait_until_ready()
        remote = RemoteScorer(server.url, settings=QUICK, cache=ScoreCache())
        assert [score.value for score in remote.score(asked)] == [83.0, 38.0, 3.0, 0.0, 330.0]
        assert len(scorer.items) == 5
        remote.score(asked)
        assert len(scorer.items) == 5
        (lost,) = remote.score([replace(item(1), source_images=(first, torn))])
        assert "source image 2 cannot be read" in str(lost.error)
    for sent, got in zip(asked, sorted(scorer.items, key=lambda i: i.sample_id), strict=True):
        for one, other in zip(sent.source_images, got.source_images, strict=True):
            assert one.tobytes() == other.tobytes()


def test_the_cache_knows_prompt_image_scorer_and_version():
    png = encode_png(ITEMS[0].image)
    other = encode_png(ITEMS[1].image)
    keys = {
        cache_key(ITEMS[0], png, "red", "1"),
        cache_key(ITEMS[0], png, "red", "1", [png]),
        cache_key(ITEMS[0], png, "red", "1", [png, other]),
        cache_key(ITEMS[0], png, "red", "1", [other, png]),
        cache_key(item(0, "q"), png, "red", "1"),
        cache_key(ITEMS[0], other, "red", "1"),
        cache_key(ITEMS[0], png, "blue", "1"),
        cache_key(ITEMS[0], png, "red", "2"),
        cache_key(RewardItem("s", "g", "p", metadata={"lang": "en"}), png, "red", "1"),
    }
    assert len(keys) == 9


def test_the_oldest_score_leaves_a_full_cache():
    cache = ScoreCache(max_entries=2)
    for name in "abc":
        cache.put(name, Score(1.0))
    assert [cache.get(name) is None for name in "abc"] == [True, False, False]


def test_a_full_queue_answers_429_and_the_client_comes_back(scorer):
    with RewardServer(lambda: [scorer], ServerSettings(max_queue=1)) as server:
        server.wait_until_ready()
        scorer.gate.clear()
        patient = ClientSettings(attempts=10**6, max_backoff=0.02, batch_size=1, concurrency=5)
        remote = RemoteScorer(server.url, settings=patient)
        other = hasty(server.url, 1, attempts=1)
        scores: list[Score] = []
        waiting = threading.Thread(target=lambda: scores.extend(remote.score(ITEMS)))
        waiting.start()
        errors = (str(other.score(ITEMS[:1])[0].error) for _ in range(100))
        assert any("status 429: 1 requests are waiting" in error for error in errors)
        scorer.gate.set()
        waiting.join()
        assert scores == [truth(each) for each in ITEMS]


def test_the_server_is_ready_when_its_scorers_are_loaded():
    loading = threading.Event()

    def load():
        loading.wait()
        return [Red()]

    with RewardServer(load) as server:
        body = ScoreRequest(scorer="red", items=[]).model_dump_json()
        assert call(server, "GET", "/v1/health")[1]["ready"] is False
        assert call(server, "POST", "/v1/score", body)[0] == 503
        threading.Timer(0.3, loading.set).start()
        assert RemoteScorer(server.url, settings=QUICK).score(ITEMS[:1])[0].value == 1.0


def test_a_scorer_that_cannot_be_loaded_is_said():
    def load():
        raise FileNotFoundError("no weights")

    with RewardServer(load) as server, pytest.raises(FileNotFoundError, match="no weights"):
        server.wait_until_ready()


def call(server, method, path, body=None, **headers):
    import http.client

    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request(method, path, body and body.encode(), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_token_is_asked_for_and_required_off_the_loopback():
    with RewardServer(lambda: [Red()], ServerSettings(token="secret")) as server:
        server.wait_until_ready()
        with pytest.raises(ServiceError, match="status 401: the token is missing or wrong"):
            RemoteScorer(server.url, settings=QUICK)
        with_token = ClientSettings(token="secret")
        assert RemoteScorer(server.url, settings=with_token).score(ITEMS[:1])[0].value == 1.0
    with pytest.raises(ValueError, match=r"'0\.0\.0\.0' can be reached .* token is required"):
        ServerSettings(host="0.0.0.0")


def test_wrong_requests_are_refused_with_their_fault(server):
    good = ScoreRequest(scorer="red", items=[WireItem.pack(ITEMS[0], b"GIF89a")])
    png = encode_png(ITEMS[0].image)
    torn = ScoreRequest(scorer="red", items=[WireItem.pack(ITEMS[0], png, [png, png[:50]])])
    cases = [
        ("GET", "/", None, 404, "nothing at /"),
        ("POST", "/v1/score", "[", 400, "not JSON"),
        ("POST", "/v1/score", '{"wire": 2}', 400, "schema version 2, expected 3"),
        ("POST", "/v1/score", good.model_dump_json(), 400, "sample 's0' is no PNG"),
        ("POST", "/v1/score", torn.model_dump_json(), 400, "source image 2 of sample 's0' is no"),
        ("POST", "/v1/score", ScoreRequest(scorer="x", items=[]).model_dump_json(), 404, "['red']"),
    ]
    for method, path, body, status, message in cases:
        got, answer = call(server, method, path, body)
        assert (got, message in answer["error"]) == (status, True), answer
    with RewardServer(lambda: [Red()], ServerSettings(max_body_mib=0.001)) as small:
        small.wait_until_ready()
        assert call(small, "POST", "/v1/score", "x" * 2000)[0] == 413


def test_the_service_fits_into_anybodys_environment():
    program = """
import sys, rewards.service.server, rewards.service.client
print(sorted({"torch", "numpy", "transformers", "diffusers", "trl"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# The contract: written down here, so that neither side changes it alone --------------------------

REQUEST = {
    "wire": 3,
    "scorer": "red",
    "items": [{"sample_id": "s", "group_id": "g", "prompt": "p", "metadata": {}, "png": "",
               "source_pngs": ["x", "y"]}],
}  # fmt: skip
RESPONSE = {
    "wire": 3,
    "scorer": "red",
    "version": "1",
    "scores": [
        {
            "sample_id": "s",
            "value": 1.5,
            "components": {"red": 1.0},
            "sigma": None,
            "error": None,
            "truncated": 3,
        }
    ],
}


@pytest.mark.parametrize(
    ("cls", "tree"), [(ScoreRequest, REQUEST), (ScoreResponse, RESPONSE), (Health, HEALTH)]
)
def test_the_wire_format_is_this(cls, tree):
    message = parse(cls, json.dumps(tree).encode())
    assert json.loads(message.model_dump_json()) == tree
    for broken in ({**tree, "more": 1}, {**tree, "wire": 2}, []):
        with pytest.raises(SchemaError):
            parse(cls, json.dumps(broken).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"0"', "true"])
def test_no_other_thing_passes_for_a_number(value):
    text = json.dumps(RESPONSE).replace("1.5", value)
    with pytest.raises(SchemaError):
        parse(ScoreResponse, text.encode())
    with pytest.raises(SchemaError, match="a score with an error has no value"):
        parse(ScoreResponse, json.dumps(RESPONSE).replace('"error": null', '"error": "x"').encode())
