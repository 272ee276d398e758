"""What operators load into Grafana and Prometheus: valid, and about metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.e2e.harness import ROOT
from tests.telemetry.test_metrics import registered

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "realtime.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {
    **{
        f"{panel['title']}: {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
    **{rule["alert"]: rule["expr"] for rule in RULES},
}


def series() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every name that a query may use, and its labels beside those of Prometheus itself."""
    for name, kind, labels in registered():
        if kind == "histogram":
            yield from ((f"{name}_{part}", (*labels, "le")) for part in ("bucket", "sum", "count"))
        else:
            yield name, labels


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_query_is_about_metrics_and_labels_that_exist(query: str):
    known = dict(series())
    used = re.findall(r"\brealtime_\w+", query)
    assert used
    assert set(used) <= set(known)
    labels = {label for name in used for label in known[name]} | {"job", "instance"}
    matched = re.findall(r"(\w+)\s*=~?", " ".join(re.findall(r"{(.*?)}", query)))
    grouped = re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", query)))
    assert {*matched, *grouped} <= labels
    assert query.count("(") == query.count(")")


def test_every_metric_is_on_the_dashboard():
    shown = {
        name
        for panel in PANELS
        for target in panel["targets"]
        for name in re.findall(r"\brealtime_\w+", target["expr"])
    }
    assert {re.sub(r"_bucket$", "", name) for name in shown} == {name for name, _, _ in registered()}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_says_how_urgent_it_is_and_what_to_do(rule: dict[str, Any]):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_no_two_alerts_have_the_same_name():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
