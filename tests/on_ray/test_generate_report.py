"""The report of a folder of loops: its players and figures, and its script in Chromium at phone and desktop widths."""

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.audio import encode_audio
from audiodiff_core.mel.picture import mel_picture
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.report import loops_manifest, loops_page
from audiodiff_platform.report.loops_manifest import Contents
from audiodiff_platform.report.loops_page import write_loops_page
from audiodiff_platform.storage import Folder
from tests.browser import SIZES, expect, opened

RATE = 22_050
HOSTILE = "<b onmouseover=alert(1)>\"'&#;?é"


def _page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def generated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two loops and a failure. One id looks like markup."""
    from tests.in_process import in_process

    root = tmp_path_factory.mktemp("generated")
    rows: list[dict[str, Any]] = [{"id": HOSTILE}, {"id": "plain", "seed": 3}, {"id": "bad", "steps": -1}]
    (root / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with in_process():
        generate(
            GenerateOptions(
                model=str(model),
                output_dir=str(root / "out"),
                requests=str(root / "requests.jsonl"),
                steps=2,
                skip_bad=True,
            )
        )
    return root / "out"


def _written(folder: Path, count: int = 12, seconds: float = 1.0) -> Path:
    """Write a folder of tones with measurements that differ, and its page. The first id looks like markup."""
    (folder / "audio").mkdir(parents=True)
    schema = MANIFEST_SCHEMA
    if "key" not in schema.names:
        schema = schema.append(pa.field("key", pa.string()))
    rows: list[dict[str, Any]] = []
    for number in range(count):
        tone = 0.3 * np.sin(np.arange(round(seconds * RATE)) * (0.02 + 0.01 * number)).astype(np.float32)
        name = f"{number:010d}" if number else HOSTILE
        path = f"audio/{name}.wav"
        (folder / path).write_bytes(encode_audio(tone, RATE))
        image = np.full((32, 32), 20 * number, np.uint8)
        rows.append(
            {
                "id": name,
                "path": path,
                "kind": "generate",
                "seed": number,
                "steps": 20 if number % 2 else 50,
                "scheduler": "ddim",
                "model_digest": "0123456789abcdef",
                "duration_s": seconds,
                "tempo_bpm": None if number == 0 else 80.0 + (7 * number) % count,
                "seam_score": abs(5.5 - number),
                "level_db": -30.0 + number,
                "key": (None, "A minor")[number % 2],
                "picture": mel_picture(image),
            }
        )
    rows += [{"id": f"quiet-{n}", "reason": f"rejected: level -{70 + n}.5 dB is below -60 dB"} for n in range(3)]
    rows += [{"id": "broken", "reason": "ValueError: source take.wav is not audio"}]
    (folder / "manifest").mkdir()
    for part in range(0, len(rows), 8):
        table = pa.Table.from_pylist(rows[part : part + 8], schema)
        pq.write_table(table, folder / "manifest" / f"{part:06d}.parquet")
    write_loops_page(Folder(str(folder)))
    return folder


def test_generate_writes_a_player_and_a_picture_for_each_loop(generated: Path) -> None:
    page = _page(generated)
    assert page.count("<audio controls loop") == page.count("<img alt") == 2
    assert page.count("data:audio/wav;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert {unescape(name) for name in re.findall(r"<h3><bdi>(.*?)</bdi>", page)} == {HOSTILE, "plain"}
    assert "<b onmouseover" not in page
    assert "row 3: steps" in page
    run = json.loads((generated / "_run.json").read_text())
    assert run["loops"] == 2
    assert f"{60 * run['loops'] / run['seconds']:,.1f} a minute" in page
    assert all(len(picture) < 2_000 for picture in pq.read_table(generated / "manifest")["picture"].to_pylist()[:2])


def test_files_of_a_loop_are_no_parameters(generated: Path) -> None:
    contents = Contents.of(Folder(str(generated)))
    for row in contents.listed:
        parameters = contents.parameters({**row, "picture_path": "pictures/0.png"})
        assert "seed" in parameters
        assert not parameters.keys() & {"path", "audio", "picture_path"}


def test_the_page_is_made_again_from_the_folder_alone(generated: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(generated, out)
    (out / "report.html").write_text("spoiled")
    summary = generate(GenerateOptions(output_dir=str(out), report=True))
    assert (summary["loops"], summary["failed"]) == (2, 1)
    assert (out / "report.html").read_bytes() == (generated / "report.html").read_bytes()
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in generated.iterdir())
    (out / "_SUCCESS").unlink()
    with pytest.raises(ValueError, match=r"report: .* holds no finished loops"):
        generate(GenerateOptions(output_dir=str(out), report=True))


def test_a_finished_job_leaves_its_page_alone(generated: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(generated, out)
    options = GenerateOptions(
        model=str(model), output_dir=str(out), requests=str(generated.parent / "requests.jsonl"), steps=2, skip_bad=True
    )
    before = [(out / name).stat().st_mtime_ns for name in ("report.html", "_run.json")]
    generate(options)
    assert [(out / name).stat().st_mtime_ns for name in ("report.html", "_run.json")] == before
    (out / "report.html").unlink()
    generate(options)
    assert _page(out) == _page(generated)


def test_options_that_need_no_model() -> None:
    assert not GenerateOptions(output_dir="out", verify=True).model
    with pytest.raises(ValueError, match="report with verify"):
        GenerateOptions(output_dir="out", verify=True, report=True)
    with pytest.raises(ValueError, match="model is required"):
        GenerateOptions(output_dir="out", count=1)


def test_many_loops_are_listed_in_part_and_much_audio_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _written(tmp_path / "loops")
    assert _page(folder).count("<audio controls loop") == 12
    monkeypatch.setattr(loops_manifest, "MAX_LISTED", 9)
    monkeypatch.setattr(loops_page, "MAX_EMBEDDED_BYTES", 100_000)
    write_loops_page(Folder(str(folder)))
    page = _page(folder)
    links = re.findall(r'<audio [^>]*src="([^"]*)"', page)
    assert [unquote(link) for link in links] == [
        f"audio/{HOSTILE}.wav",
        *(f"audio/{number:010d}.wav" for number in range(1, 9)),
    ]
    assert "The first 9 of 12 loops are listed. 3 more" in page
    assert "12 generated loops" in page
    assert "level … dB is below … dB" in page


def test_distances_have_intervals_and_sample_sizes(tmp_path: Path) -> None:
    folder = _written(tmp_path / "loops", count=2)
    assert "Distance to real audio" not in _page(folder)
    figures = {"frechet": 1.25, "frechet_low": 1.0, "frechet_high": 1.5, "n_candidate": 128, "n_reference": 900}
    names = {"embedder": "logmel-stats", "candidate": "runs/<mine>", "reference": "real"}
    (folder / "report.json").write_text(json.dumps({**names, **figures}))
    recorded = {f"clap frechet{end}": value for end, value in (("", 7.5), ("_low", 7.25), ("_high", 7.75))}
    run = {"loops": 2, "audio_s": 2.0, "seconds": 4.0, "model_metrics": {"steps": 100, **recorded}}
    (folder / "_run.json").write_text(json.dumps(run))
    write_loops_page(Folder(str(folder)))
    page = _page(folder)
    assert "<td>1.25</td><td>1 to 1.5</td><td></td><td>128 generated, 900 real</td>" in page
    assert "runs/&lt;mine&gt; compared with real, by logmel-stats" in page
    assert "<td>7.5</td><td>7.25 to 7.75</td>" in page
    assert "30.0 a minute" in page


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *parts: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/report.html"
        server.shutdown()
        thread.join()


def _shown(page: Any) -> Sequence[int]:
    """Return the numbers of the cards that can be seen, in their order."""
    numbers: list[int] = page.eval_on_selector_all(
        "article.loop", "cards => cards.filter(card => !card.hidden).map(card => +card.dataset.number)"
    )
    return numbers


@pytest.mark.browser
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_sorts_and_filters(chromium: Any, tmp_path: Path, size: str) -> None:
    folder = _written(tmp_path / "loops")
    with opened(chromium, (folder / "report.html").as_uri(), size) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("article.loop audio").count() == 12
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.select_option("select[name=sort]", "tempo")
        tempos = [(7 * number) % 12 for number in range(12)]
        assert _shown(page) == [*sorted(range(1, 12), key=lambda number: tempos[number]), 0]
        page.select_option("select[name=sort]", "level")
        page.click("button[name=direction]")
        assert _shown(page) == list(range(11, -1, -1))
        page.click(".filters summary")
        page.fill("input[name=level-from]", "-26")
        page.fill("input[name=seam-to]", "3")
        assert _shown(page) == [8, 7, 6, 5, 4]
        page.select_option("select[name=key]", "A minor")
        assert _shown(page) == [7, 5]
        assert page.locator("output").inner_text() == "2 of 12 loops"
        page.click("button[type=reset]")
        expect(page.locator("output")).to_have_text("12 loops")
        page.fill("input[name=search]", "steps20 no such thing")
        assert _shown(page) == []
        assert page.locator("p.none").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_text_of_users_is_no_markup(chromium: Any, tmp_path: Path) -> None:
    folder = _written(tmp_path / "loops")
    with opened(chromium, (folder / "report.html").as_uri(), "phone") as page:
        assert page.locator("b").count() == 0
        assert HOSTILE in page.locator("h3").all_text_contents()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_players_loop_and_one_plays_at_a_time(chromium: Any, tmp_path: Path) -> None:
    folder = _written(tmp_path / "loops", count=2, seconds=0.3)
    with opened(chromium, (folder / "report.html").as_uri()) as page:
        page.evaluate("""() => {
            window.wraps = 0;
            const audio = document.querySelector("audio");
            audio.addEventListener("seeked", () => audio.dataset.wraps = ++window.wraps);
            return document.querySelector("audio").play();
        }""")
        expect(page.locator("audio[data-wraps]:not([data-wraps='1'])")).to_have_count(1)
        assert page.locator("article.playing").count() == 1
        page.locator(".picture").nth(1).click()
        expect(page.locator("article.loop").nth(1)).to_have_class(re.compile("playing"))
        assert page.evaluate("[...document.querySelectorAll('audio')].map(audio => audio.paused)") == [True, False]
        assert page.evaluate("window.started.length") == 0


@pytest.mark.browser
@pytest.mark.parametrize("embedded", [True, False])
def test_gapless_loops_play_through_web_audio(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    if not embedded:
        monkeypatch.setattr(loops_page, "MAX_EMBEDDED_BYTES", 0)
    folder = _written(tmp_path / "loops", count=2, seconds=0.3)
    with _served(folder) as address, opened(chromium, address) as page:
        page.check("input[name=gapless]")
        page.locator(".picture").first.click()
        expect(page.locator("[data-started='1']")).to_have_count(1)
        state = page.evaluate(
            "[started[0].loop, started[0].context.sampleRate, started[0].buffer.length, started.length]"
        )
        assert state == [True, RATE, round(0.3 * RATE), 1]
        page.locator(".picture").nth(1).click()
        expect(page.locator("[data-started='2']")).to_have_count(1)
        page.uncheck("input[name=gapless]")
        assert not page.evaluate("document.querySelectorAll('audio')[1].paused")


@pytest.mark.browser
def test_gapless_says_why_it_cannot_play_linked_files(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops_page, "MAX_EMBEDDED_BYTES", 0)
    folder = _written(tmp_path / "loops", count=2, seconds=0.3)
    with opened(chromium, (folder / "report.html").as_uri()) as page:
        page.check("input[name=gapless]")
        page.locator(".picture").first.click()
        expect(page.locator("output")).to_have_text(re.compile("^Gapless is not possible"))
        assert not page.is_checked("input[name=gapless]")
        expect(page.locator("article.playing")).to_have_count(1)
