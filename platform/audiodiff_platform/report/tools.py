"""Form of a page that sorts and filters the cards of loops. The script of the page shows and serves the form."""

from collections.abc import Iterable

from audiodiff_platform.report.document import text

SORTS = {
    "number": "as generated",
    "id": "name",
    "seed": "seed",
    "tempo": "tempo",
    "key": "key",
    "seam": "seam",
    "level": "level",
    "duration": "duration",
}
"""Title of each order by the `data-` attribute of the cards."""
RANGES = {"tempo": ("Tempo", " (BPM)", 1), "seam": ("Seam", "", 0.1), "level": ("Level", " (dB)", 0.1)}
"""Title, unit and step of each measurement that has a lower and an upper bound."""
GAPLESS = '<label class="switch"><input type="checkbox" name="gapless" role="switch">Gapless</label>'


def tools(keys: Iterable[str]) -> str:
    """Return the form.

    Args:
        keys: Musical keys of the loops. Without keys, the form has no fields for keys.
    """
    names = sorted(keys)
    sorts = "".join(
        f'<option value="{name}">{title}</option>' for name, title in SORTS.items() if name != "key" or names
    )
    return f"""<form class="tools" hidden>
<label class="search">Search<input type="search" name="search" placeholder="name or parameter"></label>
<label>Sort by<select name="sort">{sorts}</select></label>
<button type="button" name="direction" aria-pressed="false" aria-label="descending" title="descending">↑</button>
<details class="filters"><summary>Filters</summary><div>
{"".join(_range(name) for name in RANGES)}{_key(names) if names else ""}<button type="reset">Clear</button>
</div></details>
{GAPLESS}
<output role="status"></output>
</form>"""


def gapless_switch() -> str:
    """Return a form with the switch for gapless repetition alone."""
    return f'<form class="tools" hidden>{GAPLESS}<output role="status"></output></form>'


def _range(name: str) -> str:
    title, unit, step = RANGES[name]
    fields = "".join(
        f'<input type="number" step="{step}" name="{name}-{end}" aria-label="{title} {end}" placeholder="{end}">'
        for end in ("from", "to")
    )
    return f"<fieldset><legend>{title}{unit}</legend>{fields}</fieldset>"


def _key(names: list[str]) -> str:
    options = "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in names)
    return (
        f'<label>Key<select name="key"><option value="">any</option>{options}'
        '<option value="-">unclear</option></select></label>'
    )
