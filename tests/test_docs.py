"""The documentation tells the truth: what is generated is fresh, what exists is documented."""

from __future__ import annotations

import re

import msgspec
import pytest

from realtime.catalogue import catalogue
from realtime.closing import CloseCode
from realtime.conf import Conf, Limits
from realtime.documentation import events_markdown
from realtime.envelope import ErrorCode
from tests.e2e.harness import ROOT

DOCS = ROOT / "docs"
CLIENT = ROOT / "client"
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))),
    *(CLIENT / "README.md", *sorted(CLIENT.glob("examples/*/README.md"))),
]


def test_page_of_events_is_what_the_catalogue_says():
    assert (DOCS / "events.md").read_text() == events_markdown(), "stale: run `make docs`"


@pytest.mark.parametrize("code", [*CloseCode])
def test_close_code_is_documented(code: CloseCode):
    assert f"| {int(code)} |" in (DOCS / "protocol.md").read_text()


@pytest.mark.parametrize("code", [*ErrorCode])
def test_error_code_is_documented(code: ErrorCode):
    assert f"`{code}`" in (DOCS / "protocol.md").read_text()


@pytest.mark.parametrize("name", sorted({*catalogue().client, *catalogue().server, *catalogue().control}))
def test_event_is_on_the_page_of_events(name: str):
    assert f"`{name}`" in (DOCS / "events.md").read_text()


@pytest.mark.parametrize("field", msgspec.structs.fields(Conf), ids=lambda field: field.name)
def test_setting_is_documented(field: msgspec.structs.FieldInfo):
    assert field.encode_name in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("field", msgspec.structs.fields(Limits), ids=lambda field: field.name)
def test_limit_is_documented(field: msgspec.structs.FieldInfo):
    assert f"REALTIME_LIMIT_{field.encode_name}" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
