"""Every text of the admin is marked for translation, and there in Portuguese as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import polib
import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import escape
from django.utils.translation.template import templatize

from realtime.redis.client import key, sync_client
from realtime.survey import ask as asking
from tests.e2e.harness import ROOT
from tests.presence.support import ONE, TWO, System, at, attend, person

APPS = [ROOT / "presence", ROOT / "realtime/outbox"]
TEMPLATES = sorted(each for app in APPS for each in (app / "templates").rglob("*.html"))
MODULES = sorted(each for app in APPS for each in app.rglob("*.py") if "migrations" not in each.parts)
MARKS = {"_", "gettext", "gettext_lazy", "gettext_noop", "ngettext"}
SHOWN = {
    "label",
    "description",
    "help_text",
    "verbose_name",
    "verbose_name_plural",
    "title",
    "question",
    "warning",
}
"""Keywords and class attributes that a reader sees."""


def marked(source: str) -> Iterator[str]:
    """The texts that are marked in Python."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKS:
            text = node.args[0]
            if isinstance(text, ast.Constant):  # else a text that was marked where it is written
                yield text.value


def marked_in_template(path: Path) -> Iterator[str]:
    """The same in a template, as Django itself finds them."""
    found = templatize(path.read_text(), origin=str(path))
    for text in re.findall(r"""\b(?:_|gettext|ngettext)\(u?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", found):
        yield ast.literal_eval(text)


@cache
def catalogue_of(path: Path) -> polib.POFile:
    """The catalogue of an app, or of the app that a file belongs to."""
    [app] = [app for app in APPS if app == path or app in path.parents]
    return polib.pofile(str(app / "locale/pt_BR/LC_MESSAGES/django.po"))


@pytest.fixture(scope="module", params=APPS, ids=lambda app: app.name)
def catalogue(request: pytest.FixtureRequest) -> polib.POFile:
    return catalogue_of(request.param)


# --- The catalogue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*MODULES, *TEMPLATES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_is_in_the_catalogue(path: Path):
    texts = marked(path.read_text()) if path.suffix == ".py" else marked_in_template(path)
    known = {entry.msgid for entry in catalogue_of(path)}
    assert [text for text in texts if text not in known] == [], "run `make messages`, then translate"


def test_every_text_is_translated_and_none_is_a_guess(catalogue: polib.POFile):
    assert [entry.msgid for entry in catalogue.untranslated_entries()] == []
    assert [entry.msgid for entry in catalogue if entry.fuzzy] == []
    assert catalogue.obsolete_entries() == []


def test_no_translation_loses_or_makes_up_a_value(catalogue: polib.POFile):
    def values(text: str) -> set[str]:
        return set(re.findall(r"%\(\w+\)[sd]", text))

    for entry in catalogue:
        if entry.msgid_plural:
            assert values(entry.msgstr_plural[1]) == values(entry.msgid_plural), entry.msgid
            assert values(entry.msgstr_plural[0]) <= values(entry.msgid_plural), entry.msgid
        else:
            assert values(entry.msgstr) == values(entry.msgid), entry.msgid


def test_what_is_compiled_is_what_is_written(catalogue: polib.POFile):
    def content(file: Any) -> dict[str, Any]:
        return {entry.msgid: entry.msgstr_plural or entry.msgstr for entry in file}

    compiled = polib.mofile(str(Path(catalogue.fpath).with_suffix(".mo")))
    assert content(compiled) == content(catalogue), "run `make messages`"


# --- Is everything marked? ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_python_shows_a_text_that_is_not_marked(path: Path):
    tree = ast.parse(path.read_text())
    found = [
        (keyword.arg, keyword.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in SHOWN and isinstance(keyword.value, ast.Constant) and keyword.value.value
    ]
    found += [
        (target.id, node.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
        and target.id in SHOWN
        and (path.name, target.id) != ("apps.py", "label")
    ]
    found += [
        ("messages", argument.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("messages.")
        for argument in node.args
        if isinstance(argument, ast.Constant)
    ]
    assert found == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_template_shows_a_text_that_is_not_marked(path: Path):
    hidden = r"{% (?:blocktranslate|block bodyclass) .*?{% end(?:blocktranslate|block) %}"
    text = re.sub(hidden, "", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"{%.*?%}|{{.*?}}", "", text, flags=re.DOTALL)
    attributes = re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]*)"', text)
    between = re.sub(r"<[^>]*>|&\w+;", " ", text, flags=re.DOTALL)
    words = re.findall(r"[^\W\d_]+", " ".join([between, *attributes]))
    assert set(words) <= {"CSV", "ms", "s"}


# --- What a reader gets ------------------------------------------------------------------------------

PAGES = [
    ("admin:presence_live_changelist",),
    ("admin:presence_live_connection", "c1"),
    ("admin:presence_live_instances",),
    ("admin:presence_live_rooms",),
    ("admin:presence_live_event",),
    ("admin:presence_live_log",),
    ("admin:presence_live_disconnect", "hub", "7"),
    ("admin:presence_live_move", "hub", "7", "42"),
    ("admin:presence_live_drain", "one"),
    ("admin:presence_deadletter_changelist",),
    ("admin:presence_deadletter_letter", "1-1"),
    ("admin:realtime_outbox_outboxmessage_changelist",),
    ("admin:presence_availability_changelist",),
    ("admin:presence_availability_person", "7"),
    ("admin:presence_presencerecord_changelist",),
    ("admin:presence_presencetransition_changelist",),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("realtime_redis")
@pytest.mark.filterwarnings("ignore:No directory at")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page[0].partition("_")[2])
def test_a_browser_that_prefers_portuguese_gets_nothing_in_english(
    admin_client: Client, monkeypatch, catalogue: polib.POFile, page: tuple[str, ...]
):
    system = System()
    system.hold("one", person(1))
    system.silent += [ONE, TWO]
    monkeypatch.setattr(asking, "ask", system.ask)
    sync_client().xadd(key("dead"), {"reason": "x: y", "source": "stream", "message": "{}"}, id="1-1")
    attend("7", [(at("2026-03-02T09:00"), "online")])
    admin_client.post(reverse("admin:presence_live_disconnect", args=["hub", "7"]), {"confirmed": "yes"})
    url = reverse(page[0], args=page[1:])
    english = admin_client.get(url, headers={"Accept-Language": "en"}).content.decode()
    portuguese = admin_client.get(
        url, headers={"Accept-Language": "pt-BR,pt;q=0.9,en;q=0.5"}
    ).content.decode()
    assert '<html lang="en"' in english
    assert '<html lang="pt-br"' in portuguese
    for entry in catalogue:
        text, translated = escape(entry.msgid), escape(entry.msgstr)
        if (
            entry.msgstr
            and len(text) > 4
            and text.lower() not in {translated.lower(), "offline"}
            and "%" not in text
        ):
            assert not re.search(rf">\s*{re.escape(text)}\s*<", portuguese), entry.msgid
            assert not re.search(rf">\s*{re.escape(translated)}\s*<", english), entry.msgid


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("realtime_redis")
@pytest.mark.filterwarnings("ignore:No directory at")
def test_log_is_kept_in_english_and_read_in_ones_own_language(admin_client: Client):
    for name, arguments in (("disconnect", ["hub", "7"]), ("move", ["hub", "7", "42"])):
        admin_client.post(reverse(f"admin:presence_live_{name}", args=arguments), {"confirmed": "yes"})
    portuguese = admin_client.get(
        reverse("admin:presence_live_log"), headers={"Accept-Language": "pt-BR"}
    ).content.decode()
    assert "Desconectado." in portuguese
    assert "Retirado: thread:42" in portuguese
