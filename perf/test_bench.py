"""Tests of what perf/bench does without running anything: scenarios are refused when they are wrong, verdicts follow from rows.

`python3 -m unittest discover -q -s perf`; `make bench` and its like do it first.
"""

import types
import unittest

import measure
import report
import scenario as scenarios

FLAGS = {"work", "connections", "groups", "topic", "rate", "size"}
GOOD = {"row": "a row", "suite": "targets", "store": "null", "load": {"work": "publish"}}


def made(name="s", **changes):
    return scenarios.Scenario(name, {key: value for key, value in (GOOD | changes).items() if value is not None}, FLAGS)


class Scenarios(unittest.TestCase):
    def test_a_good_one_is_taken(self):
        scenario = made(sweep={"connections": [1, 64]}, target=[{"figure": "cpu_us", "at": 64, "max": 9.5}])
        self.assertEqual(scenario.flags_at(64, 2)["connections"], 64)
        self.assertEqual(scenario.flags_at(64, 2)["topic"], "s")

    def test_what_is_wrong_is_refused(self):
        bad = [
            {"shard": 2}, {"suite": "target"}, {"row": None}, {"load": None}, {"load": {"connection": 1}}, {"fill": {"x": 1}},
            {"store": "kafka"}, {"brokers": 1}, {"brokers": 2}, {"server": "nginx"}, {"store": None}, {"shards": "2"},
            {"sweep": {"connections": 1}}, {"sweep": {"stores": [1]}}, {"sweep": {"size": [1], "groups": [1]}}, {"sweep": {"rate_share": [0.5]}},
            {"target": [{"figure": "cpu", "max": 1}]}, {"target": [{"figure": "cpu_us"}]}, {"target": [{"figure": "cpu_us", "max": 1, "to": 2}]},
            {"sweep": {"size": [1, 2]}, "target": [{"figure": "cpu_us", "max": 1}]},
        ]
        for changes in bad:
            with self.subTest(changes), self.assertRaises(measure.Failure):
                made(**changes)


class Verdicts(unittest.TestCase):
    def verdict(self, limit, rows):
        base, own = made("base"), made("own", target=[limit])
        options = types.SimpleNamespace(variants=[types.SimpleNamespace(label="")], rounds=3)
        made_rows = [{"scenario": name, "value": None, "variant": "", "round": number, "cpu_us": cpu_us, "rss_kb": 0}
                     for name, costs in rows.items() for number, cpu_us in enumerate(costs)]
        return report.Result(options, [base, own], made_rows, {}, 1).verdict(own, limit)

    def test_ratios_are_taken_round_by_round(self):
        limit = {"figure": "cpu_us", "of": "base", "max": 1.1}
        # The machine was twice as slow in the second round, for both: 1.0, 1.0, 1.2.
        self.assertIn("| 1 | 1 .. 1.2 | reached |", self.verdict(limit, {"base": [10, 20, 10], "own": [10, 20, 12]}))
        self.assertIn("MISSED", self.verdict(limit, {"base": [10, 20, 10], "own": [12, 24, 10]}))

    def test_what_was_not_measured_is_not_judged(self):
        self.assertIn("make bench-peers", self.verdict({"figure": "cpu_us", "of": "peer:x", "max": 1.1}, {"own": [10]}))
        self.assertIn("not in this run", self.verdict({"figure": "cpu_us", "of": "base", "max": 1.1}, {"own": [10]}))
        self.assertIn("not in this run", self.verdict({"figure": "cpu_us", "max": 1.1}, {"base": [10]}))

    def test_a_least_value_is_judged_the_other_way(self):
        self.assertIn("reached", self.verdict({"figure": "cpu_us", "min": 9}, {"own": [10]}))
        self.assertIn("MISSED", self.verdict({"figure": "cpu_us", "min": 11}, {"own": [10]}))


if __name__ == "__main__":
    unittest.main()
