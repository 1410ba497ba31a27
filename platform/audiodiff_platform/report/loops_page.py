"""Report of a folder of generated loops: `report.html`, with a player for each loop.

The page is a function of the files of the folder: the manifest, the audio, `_run.json` (the rate of the last run
and the figures of the model) and `report.json` (the figures of evaluate, if its output folder is this folder). Audio is
embedded up to MAX_EMBEDDED_BYTES in all. If the listed loops have more, the page links to the files in `audio/`.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from audiodiff_platform.entry.terminal import duration
from audiodiff_platform.mel_data.loops_folder import EVALUATION, LOOPS_PAGE, LOOPS_RUN
from audiodiff_platform.report import figures
from audiodiff_platform.report.card import card
from audiodiff_platform.report.document import data_uri, document, fold, plural, table, text, tiles
from audiodiff_platform.report.loops_manifest import MAX_LISTED, Contents, LeftOut, Row
from audiodiff_platform.report.tools import tools
from audiodiff_platform.storage import Folder

MAX_EMBEDDED_BYTES = 24_000_000
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
DIGEST_DIGITS = 12


def write_loops_page(folder: Folder) -> None:
    """Write `report.html` into a folder of loops. The same folder gives the same bytes.

    Raises:
        OSError: A listed audio file is missing or cannot be read.
    """
    contents = Contents.of(folder)
    run = folder.read_json(LOOPS_RUN) if folder.exists(LOOPS_RUN) else {}
    evaluation = folder.read_json(EVALUATION) if folder.exists(EVALUATION) else {}
    addresses = _embedded(folder, contents.listed) or [quote(row["path"]) for row in contents.listed]
    listed = enumerate(zip(contents.listed, addresses, strict=True))
    cards = "".join(_card(number, row, address, contents) for number, (row, address) in listed)
    title = plural(contents.count, "generated loop")
    body = f"""<header>
<h1>{title}</h1>
<p>{_origin(contents)}</p>
</header>
{tiles(_facts(contents, run))}
<div class="panels" tabindex="0" role="group" aria-label="distributions">{_panels(contents)}</div>
{_distances(run, evaluation)}
{_left_out("Rejected", "not kept", contents.rejected)}
{_left_out("Failed", "not generated", contents.failed)}
<section><h2>Loops</h2>
{_more(contents)}{tools({row["key"] for row in contents.listed if row.get("key")})}
<div class="loops">{cards}</div>
<p class="none" hidden>No loop has these properties.</p>
</section>
{_common(contents)}"""
    folder.write(LOOPS_PAGE, document(title, body).encode())


def _embedded(folder: Folder, rows: list[Row]) -> list[str] | None:
    """Return the audio files as `data:` URIs, or None if they have more than MAX_EMBEDDED_BYTES in all."""
    addresses, size = [], 0
    for row in rows:
        content = folder.read(row["path"])
        size += len(content)
        if size > MAX_EMBEDDED_BYTES:
            return None
        addresses.append(data_uri(MEDIA_TYPES[row["path"].rpartition(".")[2]], content))
    return addresses


def _origin(contents: Contents) -> str:
    """Describe the requests in a line, by the parameters that all loops have in common."""
    common = contents.common
    parts = [f"{common['steps']} steps" if common.get("steps") else "", common.get("scheduler") or ""]
    parts.append(f"model {common['model_digest'][:DIGEST_DIGITS]}" if common.get("model_digest") else "")
    return text(" · ".join(part for part in parts if part))


def _facts(contents: Contents, run: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    rejected, failed = contents.rejected.count, contents.failed.count
    requested = contents.count + rejected + failed
    facts = {
        "Loops": (f"{contents.count:,}", f"of {requested:,} requests"),
        "Audio": (duration(contents.audio_s), "in all"),
        "Rejected": (f"{rejected:,}", f"{rejected / requested:.1%}" if requested else ""),
        "Failed": (f"{failed:,}", f"{failed / requested:.1%}" if requested else ""),
    }
    if run.get("seconds"):
        per_minute, per_second = (60 * run["loops"] / run["seconds"], run["audio_s"] / run["seconds"])
        facts["Rate"] = (
            f"{per_minute:,.1f} a minute",
            f"{per_second:,.2f} s of audio a second; last run: "
            f"{plural(run['loops'], 'loop')} in {duration(run['seconds'])}",
        )
    return facts


def _panels(contents: Contents) -> str:
    measured, count = contents.measured, contents.count
    return (
        figures.distribution("Tempo", "BPM", measured["tempo_bpm"], count)
        + figures.distribution("Seam", "", measured["seam_score"], count)
        + figures.distribution("Level", "dB", measured["level_db"], count)
        + figures.key_counts(contents.keys, count)
    )


def _distances(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the distances of these loops, and the distances in the record of the model."""
    tables, nearest = "", ""
    if rows := figures.distances(evaluation):
        compared = [text(evaluation.get(name, "")) for name in ("candidate", "reference", "embedder")]
        tables = f"<p>{compared[0]} compared with {compared[1]}, by {compared[2]}.</p>{rows}"
        nearest = figures.frechet(evaluation)
    by_embedder: dict[str, dict[str, float]] = {}
    for name, value in sorted(run.get("model_metrics", {}).items()):
        embedder, _, figure = name.rpartition(" ")
        by_embedder.setdefault(embedder, {})[figure] = value
    for embedder, of_embedder in by_embedder.items():
        if embedder and (rows := figures.distances(of_embedder)):
            tables += f"<p>Loops of the model when it was evaluated, by {text(embedder)}, from its record.</p>{rows}"
            nearest = nearest or figures.frechet(of_embedder)
    if not tables:
        return ""
    content = f"""{tables}
<p>Fréchet and kernel distance: smaller is closer. <em>Real to real</em> is the figure of real audio: the distance
between two halves of the tracks, or from each slice to the nearest slice of other audio. Coverage is the share of
real slices with a generated slice nearby. Nearer than real audio: 0.5 is expected, and values near 1 indicate copies.
</p>"""
    return fold("Distance to real audio", nearest, content)


def _more(contents: Contents) -> str:
    more = contents.count - len(contents.listed)
    if not more:
        return ""
    return f"""<p class="more">The first {len(contents.listed):,} of {contents.count:,} loops are listed. {more:,} more
are in <code>audio/</code>, with their parameters in <code>manifest/*.parquet</code>.</p>"""


def _card(number: int, row: Row, address: str, contents: Contents) -> str:
    tempo, key = row["tempo_bpm"], row.get("key")
    measured = {
        "BPM": "none" if tempo is None else f"{tempo:.1f}",
        "Key": key or "unclear" if contents.keys else "",
        "Seam": f"{row['seam_score']:.2f}",
        "dB": f"{row['level_db']:.1f}",
        "Seconds": f"{row['duration_s']:.2f}",
    }
    parameters = {name: _value(value) for name, value in contents.parameters(row).items()}
    if tempo is not None and row.get("tempo_confidence") is not None:
        parameters["tempo_confidence"] = f"{row['tempo_confidence']:.2f}"
    keys = {
        "number": number,
        "id": row["id"],
        "seed": row["seed"],
        "tempo": tempo,
        "key": key,
        "seam": row["seam_score"],
        "level": row["level_db"],
        "duration": row["duration_s"],
    }
    shown = {name: value for name, value in measured.items() if value}
    return card(row["id"], row.get("picture"), address, measured=shown, parameters=parameters, keys=keys)


def _left_out(title: str, meaning: str, left_out: LeftOut) -> str:
    if not left_out.count:
        return ""
    kinds = [(kind or "no reason", f"{count:,}") for kind, count in left_out.reasons.most_common()]
    more = left_out.count - len(left_out.first)
    rest = f"<p>{more:,} more are in <code>manifest/*.parquet</code>.</p>" if more else ""
    content = f"""{table(("reason", "loops"), list(kinds))}
<p>The first {plural(len(left_out.first), "loop")}:</p>{table(("loop", "reason"), list(left_out.first))}{rest}"""
    return fold(title, f"{plural(left_out.count, 'loop')} {meaning}", content)


def _common(contents: Contents) -> str:
    """Return the parameters that all loops have in common."""
    rows: list[tuple[object, ...]] = [
        (name, _value(value)) for name, value in sorted(contents.common.items()) if value is not None
    ]
    if not rows:
        return ""
    content = f"""{table(("parameter", "value"), rows)}
<p class="note">At most {MAX_LISTED:,} loops are listed. Audio is part of this page up to
{MAX_EMBEDDED_BYTES // 1_000_000} MB in all; above, the players read the files in <code>audio/</code>.</p>"""
    return fold("About these loops", "what all of them have in common", content)


def _value(value: Any) -> str:
    """Format a value of the manifest."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return str(value)
