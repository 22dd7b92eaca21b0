"""Fill checklists of reporting guidelines from the record of a comparison; items that need an author stay open.

Numbers and topics follow the published checklists, with topics in this project's wording.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import TypeVar

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.reporting.checklist_facts import PLACES, Fact
from pneumoscope.reporting.table_forms import Table

__all__ = ["CHECKLISTS", "Answer", "Checklist", "Item", "checklist_table", "fill_checklist", "read_items"]

CHECKLISTS = ("claim", "tripod-ai", "stard-ai")
_Comparison = TypeVar("_Comparison")
_Run = TypeVar("_Run")
_NOT_RECORDED = "Not recorded: please add."


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a checklist.

    Attributes:
        number: Number in the checklist, such as "12a".
        topic: Its topic.
        facts: Names of facts that answer it.
        ask: Task for the author; empty if the facts are sufficient.
    """

    number: str
    topic: str
    facts: tuple[str, ...]
    ask: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """An item with the recorded facts that answer it.

    Attributes:
        item: The item.
        facts: The recorded facts; may be empty.
        asks: Tasks for the author besides `Item.ask`, for facts that are not recorded.
    """

    item: Item
    facts: tuple[Fact, ...]
    asks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The facts as sentences; empty without facts."""
        groups = [(origin, [fact.text for fact in facts]) for origin, facts in groupby(self.facts, lambda f: f.origin)]
        return " ".join(filter(None, (part for origin, texts in groups for part in (*texts, origin))))

    @property
    def places(self) -> tuple[str, ...]:
        """Anchors of the report sections with these facts."""
        return tuple(dict.fromkeys(fact.place for fact in self.facts))

    @property
    def ask(self) -> str:
        """Tasks for the author; empty if the record answers the item."""
        asks = " ".join(filter(None, (self.item.ask, *self.asks)))
        return asks or ("" if self.facts else _NOT_RECORDED)

    @property
    def status(self) -> str:
        """ "prefilled", "prefilled, to be completed" or "open"."""
        if not self.facts:
            return "open"
        return "prefilled, to be completed" if self.ask else "prefilled"


@dataclasses.dataclass(frozen=True)
class Checklist:
    """A filled checklist.

    Attributes:
        name: One of `CHECKLISTS`.
        title: Title with the year.
        source: Publication.
        answers: One for each item, in order.
    """

    name: str
    title: str
    source: str
    answers: tuple[Answer, ...]

    def counts(self) -> str:
        """Return the number of items with each status, as a clause."""
        count = Counter(answer.status for answer in self.answers)
        return (
            f"{count['prefilled']} of {len(self.answers)} items are prefilled, {count['prefilled, to be completed']} are"
            f" prefilled in part and need an author, {count['open']} are open"
        )


def read_items(name: str) -> tuple[str, str, tuple[Item, ...]]:
    """Return title, source and items of a checklist.

    Raises:
        UnknownNameError: There is no such checklist.
    """
    if name not in CHECKLISTS:
        raise UnknownNameError("checklist", name, CHECKLISTS)
    text = files("pneumoscope.reporting").joinpath("checklist_items", f"{name}.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    items = tuple(Item(number, topic, tuple(facts.split()), ask) for number, topic, facts, ask in data["items"])
    return data["title"], data["source"], items


def fill_checklist(
    name: str,
    comparison: _Comparison,
    runs: Sequence[_Run],
    known: Mapping[str, Callable[[_Comparison, Sequence[_Run]], Fact | None]],
) -> Checklist:
    """Return a checklist filled with the facts of a comparison.

    Args:
        name: One of `CHECKLISTS`.
        comparison: The comparison.
        runs: Its runs.
        known: Functions that return facts, by name: `BINARY_FACTS`, or `CLASS_FACTS` for multiclass comparisons.

    Raises:
        UnknownNameError: There is no such checklist.
    """
    title, source, items = read_items(name)
    facts = {each: known[each](comparison, runs) for each in sorted({fact for item in items for fact in item.facts})}
    return Checklist(name, title, source, tuple(_answer(item, facts) for item in items))


def _answer(item: Item, facts: Mapping[str, Fact | None]) -> Answer:
    """Return the answer to an item, given the facts by name (None if not recorded)."""
    found = [fact for name in item.facts if (fact := facts[name])]
    stated = tuple(fact for fact in found if fact.text)
    return Answer(item, stated, tuple(dict.fromkeys(fact.ask for fact in found if fact.ask)))


def checklist_table(checklist: Checklist) -> Table:
    """Return a checklist as a table: number, topic, status, facts, place in the report, and tasks for the author."""
    rows = tuple(
        (
            answer.item.number,
            answer.item.topic,
            answer.status,
            answer.text,
            ", ".join(PLACES[place] for place in answer.places),
            answer.ask,
        )
        for answer in checklist.answers
    )
    columns = ("Item", "Topic", "Status", "From the record", "Place in the report", "For the author")
    return Table(f"checklist-{checklist.name}", f"{checklist.title}.", columns, rows, checklist.source)
