"""The page of the server in Chromium, with the real server: everything that a musician does with it."""

import ast
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_platform.serve.job import served
from audiodiff_platform.serve.options import ServeOptions
from tests.browser import SIZES, TIMEOUT_MS, expect, opened
from tests.random_models import save_conditional
from tests.serving import free_port

pytestmark = [pytest.mark.browser, pytest.mark.workers]

KEY = "a key for this test"
WITH_KEY = f"sessionStorage.setItem('audiodiff-key', {json.dumps(KEY)});"
WATCHED = """
window.messages = [];
window.pictures = 0;
const draw = window.createImageBitmap;
window.createImageBitmap = (...image) => (window.pictures++, draw(...image));
addEventListener("DOMContentLoaded", () => {
    const message = document.getElementById("message");
    new MutationObserver(() => window.messages.push(message.textContent)).observe(message, { childList: true });
});
"""
"""Script that keeps the messages of the page, and counts the pictures that it draws."""


@pytest.fixture(scope="module")
def address(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server that requires a key, and return the address of its page."""
    port, conditions = free_port(), MeasuredConditions.of(["tempo", "key"])
    folder = tmp_path_factory.mktemp("keyed") / "model"
    keyed = save_conditional(folder, conditions.dim, hop_length=512, conditions=conditions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIODIFF_API_KEY", KEY)
        with served(ServeOptions(model=(f"tiny={model}", f"keyed={keyed}"), port=port, max_replicas=1)):
            yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(address: str, chromium: Any) -> Iterator[Any]:
    """Return the open page, which has the key and may use the clipboard."""
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(chromium, address, script=WITH_KEY + WATCHED, permissions=permissions) as page:
        page.set_default_timeout(TIMEOUT_MS)
        expect(page.locator("#model option")).to_have_count(2)
        page.fill("#steps", "6")
        yield page


def make(page: Any, takes: int) -> None:
    """Press Make, and wait for the take with this number."""
    page.click("#make")
    expect(page.locator("#takes li")).to_have_count(takes)
    expect(page.locator("#make")).to_be_enabled()


def facts(page: Any) -> dict[str, str]:
    """Return what the page says about the take that is heard."""
    return dict(
        zip(page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts(), strict=True)
    )


def saved(page: Any, number: int, folder: Path) -> bytes:
    """Save a take under its name, and return its content."""
    with page.expect_download() as download:
        page.locator("#takes .file").nth(number).click()
    download.value.save_as(folder / download.value.suggested_filename)
    content: bytes = (folder / download.value.suggested_filename).read_bytes()
    return content


def copied(page: Any, button: str) -> str:
    """Press a button that copies, and return the text of the clipboard."""
    page.click(button)
    expect(page.locator("#message")).to_have_text("Copied.")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_a_loop_is_made_heard_and_compared(page: Any) -> None:
    page.fill("#seed", "7")
    make(page, 1)
    messages = page.evaluate("messages")
    assert [text for text in messages if text.startswith("Step")] == [f"Step {n} of 6" for n in range(1, 6)]
    assert page.evaluate("pictures") == 5 + 2  # previews, then the take in the row and on the stage
    assert facts(page).items() >= {"Seed": "7", "Length": "1.49 s"}.items()
    expect(page.locator("#play")).to_have_text(re.compile("Pause"))
    state = "(({loop, buffer, context}) => [loop, buffer.sampleRate, buffer.length, context.sampleRate])(started[0])"
    assert page.evaluate(state) == [True, 22_050, 32_768, 22_050]
    cursor = page.locator("#cursor")
    places = set[str]()
    while len(places) < 3:
        places.add(cursor.get_attribute("style"))
    assert page.evaluate("started[0].context.state") == "running"
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text(re.compile("Play"))
    expect(cursor).to_be_hidden()

    make(page, 2)
    assert facts(page)["Seed"] != "7"
    page.locator("#volume").fill("0.3")
    row = page.locator("#takes li")
    expect(row.nth(0)).to_have_attribute("aria-current", "true")
    page.click("#compare")
    expect(row.nth(1)).to_have_attribute("aria-current", "true")
    assert facts(page)["Seed"] == "7"
    page.keyboard.press("x")
    expect(row.nth(0)).to_have_attribute("aria-current", "true")
    row.nth(0).locator(".remove").click()
    expect(row).to_have_count(1)
    expect(page.locator("#compare")).to_be_disabled()
    assert facts(page)["Seed"] == "7"
    row.press("Delete")
    expect(page.locator("#takes")).to_be_hidden()
    expect(page.locator("#empty")).to_be_visible()


def test_bars_at_a_tempo_are_in_the_name_of_the_file(page: Any, tmp_path: Path) -> None:
    page.select_option("#bars", "1")
    page.fill("#bpm", "240")
    page.fill("#seed", "3")
    make(page, 1)
    assert facts(page)["Length"] == "1.00 s"
    content = saved(page, 0, tmp_path)
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"generate-3_240_bpm(_[A-G]s?_(major|minor))?\.wav", file.name)
    assert content[:4] == b"RIFF"
    dragged = """link => {
        const data = new DataTransfer();
        link.dispatchEvent(new DragEvent("dragstart", { dataTransfer: data, bubbles: true }));
        return data.getData("DownloadURL");
    }"""
    kind, name, url = page.locator("#takes .file").evaluate(dragged).split(":", 2)
    assert (kind, name, url[:5]) == ("audio/wav", file.name, "blob:")

    page.check("text=Redo part")
    page.locator("#picture").press("ArrowLeft")
    make(page, 2)
    assert facts(page)["Length"] == "1.07 s", "the next width of the model"
    page.check("text=Vary")
    page.locator("#takes .use").nth(1).click()
    make(page, 3)
    assert facts(page)["Length"] == "1.00 s"


def test_a_tempo_is_sent_if_it_is_chosen(page: Any) -> None:
    bpm = page.locator("#bpm")
    expect(bpm).to_be_disabled()
    page.select_option("#bars", "1")
    expect(bpm).to_have_value("120")
    page.select_option("#bars", "")
    expect(bpm).to_have_value("")

    def sent(takes: int) -> dict[str, Any]:
        """Make a take, and return the request."""
        with page.expect_request("**/v1/generate") as request:
            make(page, takes)
        fields: dict[str, Any] = request.value.post_data_json
        return fields

    page.select_option("#model", "keyed")
    expect(bpm).to_be_enabled()
    assert "bpm" not in sent(1)
    page.fill("#bpm", "300")
    page.click("#make")
    expect(page.locator("#bpm:invalid")).to_have_count(1)
    page.fill("#bpm", "90")
    assert sent(2)["bpm"] == 90
    page.select_option("#bars", "1")
    assert sent(3).items() >= {"bpm": 90, "bars": 1}.items()
    page.select_option("#bars", "")
    expect(bpm).to_have_value("90")


def test_sounds_are_varied_made_again_in_part_and_blended(page: Any, loops: Path, tmp_path: Path) -> None:
    page.check("text=Vary")
    page.click("#make")
    expect(page.locator("#message")).to_have_text("Choose a sound first.")
    page.locator(".drop input").first.set_input_files(loops / "loop_tabla.flac")
    expect(page.locator(".drop .name").first).to_have_text("loop_tabla.flac")
    page.locator("#strength").fill("0.3")
    expect(page.locator("#strength-value")).to_have_text("0.3")
    make(page, 1)

    page.check("text=Redo part")
    page.locator("#takes .use").click()
    page.click("#make")
    expect(page.locator("#message")).to_have_text("Drag over the picture to choose what is made again.")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=3)
    page.mouse.up()
    assert facts(page)["Part"] == "0.72 to 1.08 s"
    page.locator("#picture").press("ArrowLeft")
    assert facts(page)["Part"] == "0.69 to 1.05 s"
    make(page, 2)

    page.check("text=Blend")
    page.locator(".drop input").nth(1).set_input_files(loops / "loop_mika.flac")
    page.locator("#position").fill("0.25")
    make(page, 3)
    names = [page.locator("#takes .file").nth(n).get_attribute("download").partition("-")[0] for n in range(3)]
    assert names == ["interpolate", "inpaint", "vary"]


def test_what_is_copied_makes_the_same_bytes(page: Any, loops: Path, tmp_path: Path) -> None:
    shutil.copy(loops / "loop_tabla.flac", tmp_path / 'it\'s a "loop".flac')
    page.locator("#roll").uncheck()
    make(page, 1)
    commands = [(copied(page, "#copy-curl"), copied(page, "#copy-python"), saved(page, 0, tmp_path))]
    page.check("text=Vary")
    page.locator(".drop input").first.set_input_files(tmp_path / 'it\'s a "loop".flac')
    make(page, 2)
    commands.append((copied(page, "#copy-curl"), copied(page, "#copy-python"), saved(page, 0, tmp_path)))
    environment = {"AUDIODIFF_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    for curl, program, content in commands:
        assert KEY not in curl + program
        for command in (["sh", "-c", f"{curl} --silent --fail"], [sys.executable, "-c", program]):
            subprocess.run(command, cwd=tmp_path, env=environment, check=True)
            assert (tmp_path / "loop.wav").read_bytes() == content
            (tmp_path / "loop.wav").unlink()


def test_text_is_copied_as_it_is(page: Any) -> None:
    fields = {"model": "tiny", "prompt": "<3 true 'house'", "seamless": True, "regenerate": [[0.5, 1]]}
    copies = "async ([name, ...call]) => (await import('./static/request.js'))[name](...call)"
    sounds = [{"name": "a.wav"}]
    curl = page.evaluate(copies, ["asCurl", "vary", fields, sounds, False])
    _, *arguments = shlex.split(curl.replace("\\\n", ""))
    texts = [value for option, value in pairwise(arguments) if option == "--form-string"]
    assert texts == ["model=tiny", "prompt=<3 true 'house'", "seamless=true", "regenerate=[[0.5,1]]"]
    program = page.evaluate(copies, ["asPython", "generate", fields, [], False])
    assert ast.literal_eval(program.partition("fields = ")[2].partition("\nresponse")[0]) == fields


def test_a_request_is_stopped_and_the_keyboard_does_everything(page: Any) -> None:
    page.fill("#steps", "1000")
    page.locator("#seed").press("Enter")
    expect(page.locator("#message")).to_have_text(re.compile("Step"))
    page.keyboard.press("Escape")
    expect(page.locator("#message")).to_have_text("Stopped.")
    expect(page.locator("#empty")).to_be_visible()
    page.fill("#steps", "2000")
    page.click("#make")
    expect(page.locator("#steps:invalid")).to_have_count(1)
    page.fill("#steps", "2")
    seed = page.input_value("#seed")
    page.locator("#seamless").focus()
    page.keyboard.press("r")
    assert page.input_value("#seed") != seed
    page.keyboard.press("Space")
    expect(page.locator("#seamless")).not_to_be_checked()
    page.click("#dice")
    page.locator("#volume").press("Enter")
    expect(page.locator("#takes li")).to_have_count(1)
    page.locator("#model").focus()
    order = list[str]()
    while (
        at := page.evaluate("(({id, className, tagName}) => id || className || tagName)(document.activeElement)")
    ) not in (*order, "BODY"):
        order.append(at)
        outline = page.evaluate(
            "(({type}) => getComputedStyle(type === 'radio' ? document.activeElement.parentElement :"
            " document.activeElement).outlineStyle)(document.activeElement)"
        )
        assert outline == "solid", at
        page.keyboard.press("Tab")
    wanted = ["model", "change-key", "seed", "dice", "steps", "make", "copy-curl", "play", "volume", "as-a", "remove"]
    assert [name for name in order if name in wanted] == wanted


def test_a_key_is_asked_for(address: str, chromium: Any) -> None:
    with opened(chromium, address, expected_error="401") as page:
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key", "wrong")
        page.click("text=Use key")
        expect(page.locator("#key-message")).to_have_text("The server refused the key.")
        page.fill("#key", KEY)
        page.locator("#key").press("Enter")
        expect(page.locator("#model option")).to_have_text(["tiny", "keyed"])
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits(address: str, chromium: Any, loops: Path, size: str, scheme: str) -> None:
    with opened(chromium, address, size, WITH_KEY, color_scheme=scheme) as page:
        expect(page.locator("#model option")).to_have_count(2)
        page.fill("#steps", "6")
        for number, name in enumerate(["loop_tabla", "loop_mika", "ambi_haunted_hum"]):
            page.check("text=Vary")
            page.locator(".drop input").first.set_input_files(loops / f"{name}.flac")
            page.locator("#strength").fill("0.3")
            make(page, number + 1)
        for kind in ("New", "Redo part", "Blend"):
            page.check(f"text={kind}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), kind


def test_its_files_are_strict_and_need_no_key(address: str) -> None:
    page = httpx.get(address)
    names = re.findall(r'(?:href|src)="(static/[^"]*)"', page.text)
    assert len(set(names)) == 3
    for answer in (page, *(httpx.get(address + name) for name in {*names, "static/player.js"})):
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
        again = httpx.get(answer.url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("static/nothing.js", "static/..%2fkeys.py", "static/%2e%2e/keys.py"):
        assert httpx.get(address + name).status_code in (401, 404)
