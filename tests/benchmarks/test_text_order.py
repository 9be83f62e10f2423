import json
from itertools import permutations

import pytest

from benchmarks.text.briefs import BRIEFS
from benchmarks.text.draw import FAULTS, draw_poster
from benchmarks.text.order import ORDER_FILE, dominates, variants


def test_the_order_file_holds_every_dominance_pair_and_nothing_else():
    pairs = json.loads(ORDER_FILE.read_text(encoding="utf-8"))["pairs"]
    wanted = [list(pair) for pair in permutations(variants(), 2) if dominates(*pair)]
    assert sorted(pairs, key=str) == sorted(wanted, key=str)


def test_a_poster_dominates_only_one_with_all_its_faults_and_more():
    assert dominates({}, {"junk": 1})
    assert dominates({"junk": 1}, {"junk": 2})
    assert dominates({"junk": 1}, {"junk": 1, "blurred": 1})
    assert not dominates({"junk": 1}, {"blurred": 3})
    assert not dominates({"junk": 2}, {"junk": 1, "blurred": 1})
    assert not dominates({"junk": 1}, {"junk": 1})


def test_every_fault_changes_the_poster_and_its_levels_differ():
    brief = BRIEFS[0]
    drawn = {draw_poster(brief, faults).tobytes() for faults in variants()}
    assert len(drawn) == len(variants())
    with pytest.raises(ValueError, match="junk has levels 1 to 2, got 3"):
        draw_poster(brief, {"junk": 3})
    assert {name for faults in variants() for name in faults} == set(FAULTS)
