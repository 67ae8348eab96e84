"The board as pages, made from its data: CLAIMS.md, the site's page, and the table of the first page"
from collections.abc import Callable, Mapping

from ._board import GRADES, VERDICTS
from ._sources import fold, table_row

DOTS = dict(
    zip(VERDICTS, ("🟢", "🔴", "🟠", "⚪", "⚪", "🟤", "⚫"))
)  # in CLAIMS.md, where a code host shows no other colour
MARKS = dict(zip(VERDICTS, ("✔", "✘", "≈", "○", "○", "†", "×")))  # on the site, where nbs/site/site.scss colours them
TITLE = "The board: every claim and its verdict"
_GUIDE = """\
A verdict needs a rule that stood before the run. [The notebook on claims](95_claims.ipynb) explains the tests.

- **reproduced**: the whole 95 % interval lies in the claimed region, against every control.
- **refuted**: the region is excluded, and the opposite is shown, or an effect of another size.
  With k controls the interval has level 1 − 0.05/k.
- **no effect found**: the interval contains zero and lies within a margin, the smallest effect that the card claims.
- **nothing could be seen**: arm and control are closer to the metric's bound than the claimed effect is large.
- **post hoc**: an answer to the same question was recorded before the card. Only fresh random seeds can settle it.
- **retired**: the number is a time, which processors differ in by up to two. **open**: anything else.

Grades: **A** predicted and kept, **B** confirmed and kept, **C** decided but lost.
*Kept*: Holm's rule agrees when all cards of a study are one family; the corrected p-value stands beside it.
*Predicted*: no pilot and no earlier recording of its arms; *confirmed* otherwise.
Intervals are Student's t over random seeds, cut to the possible range; "runs" are counts, with an exact interval.
With five random seeds no two-sided sign-flip test can pass 5 %."""
_DATA = """## As data

[board.json](board.json) holds all of this: `sentences` (verdict → how many), `cards_by_verdict`, `rows` (the table
above) and `cards`. A card there has its claim, sources, verdict, grade, numbers with intervals, study, page and how
it was judged.
`refine-nb claims` writes it, and `refine-nb claims --check` fails where it is not what the results say."""
_SCRIPT = """```{=html}
<script>
// A filter for the cards; without it the page is complete, only folded.
document.addEventListener("DOMContentLoaded", () => {
  const cards = [...document.querySelectorAll(".board-card")], folds = [...document.querySelectorAll("details.study")];
  const bar = document.getElementById("board-filter"), fields = {};
  const choice = (name, values) => {
    const s = bar.appendChild(document.createElement("select"));
    s.setAttribute("aria-label", name);
    s.append(new Option(name + ": all", ""), ...values.map(v => new Option(v, v)));
    fields[name] = s;
  };
  const search = bar.appendChild(Object.assign(document.createElement("input"),
                                               {type: "search", placeholder: "search"}));
  search.setAttribute("aria-label", "search the cards");
  for (const name of ["verdict", "grade", "study"])
    choice(name, [...new Set(cards.map(c => c.dataset[name]))].sort());
  const count = bar.appendChild(document.createElement("span"));
  const show = () => {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const asked = words.length || Object.values(fields).some(f => f.value);
    let n = 0;
    for (const c of cards) {
      const text = c.textContent.toLowerCase();
      const chosen = Object.entries(fields).every(([k, f]) => !f.value || c.dataset[k] === f.value);
      const hit = chosen && words.every(w => text.includes(w));
      c.hidden = !hit; n += hit;
    }
    for (const f of folds) {
      const any = f.querySelector(".board-card:not([hidden])");
      f.hidden = !any; f.open = !!(any && asked);
    }
    count.textContent = n + " of " + cards.length + " cards";
  };
  const jump = () => {
    const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card && card.closest("details")) { card.closest("details").open = true; card.scrollIntoView(); }
  };
  bar.addEventListener("input", show);
  window.addEventListener("hashchange", jump);
  show(); jump();
});
</script>
```"""


def claims_md(
    data: Mapping,  # from `board_data`
) -> str:
    "CLAIMS.md: the same board as the site's, links as seen from the top of the repository"
    links = lambda text: text.replace("](95_claims", "](nbs/95_claims").replace("](board.json)", "](nbs/board.json)")
    head = [f"# {TITLE}", _written(), summary(data, "nbs/", _dotted), links(_GUIDE), links(_DATA), "## All cards"]
    return "\n\n".join([*head, *_studies(data, _plain_card)]) + "\n"


def board_qmd(
    data: Mapping,  # from `board_data`
) -> str:
    "The site's page: the table, then a filter and the folded cards"
    front = f"---\ntitle: \"{TITLE}\"\ntoc-depth: 2\n---"
    head = [front, summary(data, "", _coloured), fold("What the words mean", _GUIDE), "## All cards"]
    return (
        "\n\n".join([*head, "::: {#board-filter}\n:::", *_studies(data, _site_card), _DATA, _SCRIPT, _written()]) + "\n"
    )


def hook(
    data: Mapping,                        # from `board_data`
    folder: str = "",                     # of the pages, seen from the reader
    marked: Callable[[str], str] | None = None,  # a verdict as markdown
) -> str:
    "The verdicts on the sentences of the sources, in one sentence"
    said = data["sentences"]
    judged = sum(n for word, n in said.items() if word != "no card")
    parts = [f"**{said[w]}** {(marked or _coloured)(w)}" for w in VERDICTS if said.get(w)]
    return f"{judged} claims of [the source documents]({folder}sources.qmd) were tested: {', '.join(parts)}."


def front_table(
    data: Mapping,     # from `board_data`
    folder: str = "",  # where the pages are, seen from the reader
) -> str:
    "The headline findings for the first page"
    rows = [row for row in data["rows"] if row["front"]]
    ns = {row["n"] for row in rows}
    alike = f", n\u00a0=\u00a0{ns.pop()}" if len(ns) == 1 else ""  # what all share stands in the head
    lines = [f"| claim | claimed | measured (95\u00a0%{alike}) | control | verdict |", _widths(33, 13, 26, 19, 15)]
    for row in rows:
        verdict = f"[{_coloured(row['verdict'])}](board.qmd#{row['card']}){_graded(row)}"
        cells = [
            _claim(row | {"says": row["front"]}, folder),
            row["claimed"],
            row["measured"].replace(alike, ""),
            row["control"],
        ]
        lines.append(table_row([*cells, verdict]))
    return "\n".join(lines)


def summary(
    data: Mapping,                 # from `board_data`
    folder: str,                   # of the pages, seen from this one
    marked: Callable[[str], str],  # a verdict as markdown
) -> str:
    "Counts, and the one table that a person reads"
    lines = [
        "| method | claim | claimed | measured | strongest control | verdict | grade |",
        _widths(10, 32, 12, 24, 18, 13, 6),
    ]
    method = ""
    for row in data["rows"]:
        shown, method = ("" if row["method"] == method else f"**{row['method']}**"), row["method"]
        cells = [shown, _claim(row, folder), row["claimed"], row["measured"], row["control"] or "—"]
        lines.append(table_row([*cells, f"[{marked(row['verdict'])}](#{row['card']})", row["grade"]]))
    checked = data["verified"]
    rows = (
        f"{checked['rows']} of {checked['of']} rows behind the cards are verified ({checked['date']})."
        if checked
        else ""
    )
    counted = fold("Counts: sentences of the sources apart from own forecasts and controls", _counts(data, marked))
    first = hook(data, folder, marked) if data["sentences"] else ""
    return "\n\n".join(filter(None, [f"{first} {rows}".strip(), "\n".join(lines) if data["rows"] else "", counted]))


def _counts(data: Mapping, marked: Callable[[str], str]) -> str:
    "Cards of each verdict, those on sentences of the sources apart from our own"
    lines = ["| | verdict | all | predicted | kept by Holm |", "|---|---|---|---|---|"]
    said = data["sentences"]
    lines += [
        table_row(["sentences of the sources", marked(w), said[w], "", ""])
        for w in (*VERDICTS, "no card")
        if said.get(w)
    ]
    for group, words in data["cards_by_verdict"].items():
        for word, n in words.items():
            held = f"{n['kept']} of {n['tried']}" if n["tried"] else "—"
            if n["all"]: lines.append(table_row([group, marked(word), n["all"], n["predicted"], held]))
    return "\n".join(lines)


def _studies(data: Mapping, one: Callable[[Mapping], str]) -> list[str]:
    "All cards, folded by experiment"
    folds = []
    for study in dict.fromkeys(card["study"] for card in data["cards"]):
        cards = [card for card in data["cards"] if card["study"] == study]
        folds.append(fold(f"{study}: {len(cards)} cards", "\n\n".join(map(one, cards)), "study"))
    return folds


def _plain_card(card: Mapping) -> str:
    "A card in CLAIMS.md, whose heading is its anchor"
    return f"### {card['id']}\n\n" + _body(
        card, "nbs/", _dotted(card["verdict"]), f"[`{card['study']}`](experiments/{card['study']}.ipynb)"
    )


def _site_card(card: Mapping) -> str:
    "A card on the site: a block that the filter knows"
    known = " ".join(f'data-{name}="{card[name]}"' for name in ("verdict", "grade", "study"))
    body = _body(card, "", _coloured(card["verdict"]), f"`experiments/{card['study']}.ipynb`")
    return f"::: {{#{card['id']} .board-card {known}}}\n**{card['id']}**\n\n{body}\n:::"


def _body(card: Mapping, folder: str, verdict: str, experiment: str) -> str:
    "What stands under a card's name"
    basis = f", {card['basis']}" if card["basis"] else ""
    holm = f"; Holm: {card['holm']}" if card["holm"] != "—" else ""
    found = [f"[figure and evidence]({folder}{card['page']})"] if card["page"] else []
    found += [f"sources {', '.join(_source(n, folder) for n in card['sources'])}"] if card["sources"] else []
    found += [f"experiment {experiment}", f"`results/{card['sweep']}/runs.csv`", f"`make sweep SWEEP={card['sweep']}`"]
    lines = [f"{verdict}, grade {card['grade']}{basis}{holm}. Rows: {card['rows']}.", card["claim"], " · ".join(found)]
    return "\n\n".join([*lines, "\n".join(f"- {line}" for line in card["judged"])])


def _claim(row: Mapping, folder: str) -> str:
    "A claim in plain words, linked to its page, with the numbers of the sources"
    says = f"[{row['says']}]({folder}{row['page']})" if row["page"] else row["says"]
    numbers = ", ".join(_source(n, folder) for n in row["sources"])
    return f"{says} ({numbers})" if numbers else says


def _source(number: str, folder: str) -> str:
    "A claim of a source, linked; a minus says that the card claims the opposite"
    plain = number.removeprefix("-")
    return f"{'against ' if number != plain else ''}[{plain}]({folder}sources.qmd#{plain})"


def _dotted(verdict: str) -> str:
    "A verdict with its colour, as a code host shows it"
    return f"{DOTS.get(verdict, '')} {verdict}".strip()


def _coloured(verdict: str) -> str:
    "A verdict with its mark, which the site colours"
    mark = f"{MARKS.get(verdict, '')} {verdict}".strip()
    return f'<span class="verdict {verdict.replace(" ", "-")}">{mark}</span>'


def _graded(row: Mapping) -> str:
    "A grade, nothing where nothing is decided"
    return f"\u00a0{row['grade']}" if row["grade"] in list(GRADES)[:3] else ""


def _written() -> str:
    "Who writes the page"
    return "Written by `refine-nb claims` from the tables in `results/`; edits here are overwritten."


def _widths(*widths: int) -> str:
    "The line under a table's head; the site divides its width in these proportions"
    return "|" + "|".join("-" * w for w in widths) + "|"
