"""The report and the drawing page in a real browser: they work, print nothing on the console, and use no network."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from synthetic_runs import write_run

from mnist_exp.cli import report
from mnist_exp.demo import Demo, load_networks
from mnist_exp.reports import live
from mnist_exp.reports.live import LiveReport, ReportServer

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page, its console messages and its requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def stays_on(self, start: str) -> bool:
        return all(url.startswith((start, "data:")) for url in self.requests)


@pytest.fixture(params=[("light", 1280), ("dark", 360)], ids=lambda p: f"{p[0]}-{p[1]}")
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    scheme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    yield Visit(context.new_page())
    context.close()


@pytest.fixture
def page_file(tmp_path: Path, composed: Callable[..., dict[str, Any]]) -> Path:
    for name, accuracy in (("low", 0.91), ("high", 0.97), ("middle", 0.94)):
        tree = composed(f"name={name}", "data=mnist5k", f"optimizer.lr={1 - accuracy}")
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{name}-{seed}", tree, seed=seed, accuracy=accuracy + seed / 1000, epochs=6,
                      val_accuracy=accuracy - 0.01)  # fmt: skip
    report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    return tmp_path / "out" / "report.html"


def count_lines(page: Page, number: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#plot-curves_loss .mark-line path').length == {number}")


def ticks(page: Page, figure: str) -> list[str]:
    """The epochs at the ticks of a figure of curves."""
    axis = page.locator(f"#plot-{figure} .role-axis").filter(has_text="epoch").locator(".role-axis-label text")
    return sorted(axis.all_text_contents())


def draw_a_box(page: Page, figure: str) -> None:
    """Drag the mouse over the right half of a figure of curves."""
    area = page.locator(f"#plot-{figure} svg").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 0.55 * area["width"], area["y"] + 0.3 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 2 * area["width"], area["y"] + 0.8 * area["height"], steps=3)  # as far as its edge
    assert page.locator(".box").count() == 1
    page.mouse.up()


def test_report(page_file: Path, visit: Visit) -> None:
    page = visit.page
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    assert page.locator(".plot svg").count() == page.locator(".plot").count() >= 8

    assert page.locator("h1").inner_text().startswith("Best arm: high, 96.00\u00a0% validation")
    assert page.locator(".badge").all_inner_texts() == ["too few seeds"]
    assert page.locator("#plot-accuracy svg").bounding_box()["y"] < 800, "the first screen has the key figure"

    lines = page.locator("#plot-curves_loss .mark-line path")
    assert lines.count() == 6, "test and validation"
    page.uncheck("#split-validation")
    count_lines(page, 3)
    switch = page.locator("[data-arm=middle]")
    switch.click()
    count_lines(page, 2)
    assert switch.get_attribute("aria-pressed") == "false"
    page.click("[data-only=middle]")
    count_lines(page, 1)
    page.check("#split-training")
    count_lines(page, 2)
    page.uncheck("#split-training")
    page.click("#show-all")
    count_lines(page, 3)

    page.select_option("#seed", "1")
    page.click("[data-only=high]")
    page.check("#split-training")
    count_lines(page, 2)  # of one run
    high = page.evaluate("views.curves_error.data('curves').filter(point => point.arm === 'high' && point.epoch === 6)")
    assert {point["split"]: round(point["mean"], 6) for point in high} == {
        "test": 0.029, "validation": 0.04, "training": 0.2,
    }, "with the seed 1, not the mean"  # fmt: skip
    page.uncheck("#split-training")
    page.click("#show-all")
    page.select_option("#seed", "")
    count_lines(page, 3)

    page.locator("#curves").scroll_into_view_if_needed()
    assert ticks(page, "curves_error") == list("123456")
    whole = page.locator("[data-whole=curves_error]")
    assert whole.is_hidden()
    draw_a_box(page, "curves_error")
    whole.wait_for()
    assert ticks(page, "curves_error") == list("456")
    assert ticks(page, "curves_loss") == list("123456")
    page.locator("#plot-curves_error svg").dblclick()
    whole.wait_for(state="hidden")
    assert ticks(page, "curves_error") == list("123456")
    draw_a_box(page, "curves_error")
    whole.focus()
    page.keyboard.press("Enter")
    whole.wait_for(state="hidden")
    assert ticks(page, "curves_error") == list("123456")
    assert page.evaluate("document.activeElement.dataset.png") == "curves_error"

    page.locator("#first").fill("4")
    page.wait_for_function("document.querySelector('#plot-curves_loss .role-axis-label').textContent.startsWith('4')")
    plot = page.locator("#plot-curves_loss svg")
    plot.scroll_into_view_if_needed()
    plot.hover()
    shown = page.locator("#vg-tooltip-element td.key")
    shown.first.wait_for()
    assert sorted(shown.all_inner_texts()) == ["epoch", "high", "low", "middle"], "all arms at one epoch"

    def first_cells() -> list[str]:
        return [
            text.split(" ")[0].split("\n")[0]
            for text in page.locator("#table-arms tbody td:first-child").all_inner_texts()
        ]

    assert first_cells() == ["high", "middle", "low"]
    loss = page.locator("#table-arms th button", has_text="test accuracy")
    loss.click()
    assert first_cells() == ["high", "middle", "low"]
    loss.click()
    assert first_cells() == ["low", "middle", "high"]

    before = page.locator("#plot-confusion").inner_text()
    page.select_option("#confused", "low")
    page.wait_for_function(f"document.querySelector('#plot-confusion').innerText != {before!r}")

    page.locator("summary", has_text="side by side").click()
    page.select_option("#side-1", label="low")
    assert page.locator("#table-two thead th").all_inner_texts() == ["setting", "high", "low"]
    assert page.locator("#table-two tbody td:first-child").all_inner_texts() == ["optimizer.lr"]

    saved = {}
    for kind in ("png", "csv"):
        with page.expect_download() as download:
            page.click(f"[data-{kind}=curves_error]")
        saved[kind] = Path(download.value.path()).read_bytes()
    with Image.open(io.BytesIO(saved["png"])) as image:
        assert len(image.convert("RGB").getcolors(1_000_000) or []) > 10, "not blank"
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert saved["csv"].decode().splitlines()[0] == "arm,key,split,epoch,mean,low,high,runs"
    assert len(saved["csv"].decode().splitlines()) == 1 + 3 * 3 * 6

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page itself never scrolls sideways"
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.querySelector('{place}')).{what}")
        for place, what in (("#plot-curves_loss .role-axis-label text", "fill"), ("body", "backgroundColor"))
    )
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(map(int, ink[4:-1].split(", "))) > 384) == dark, "labels contrast with the paper"
    assert (sum(map(int, paper[4:-1].split(", "))) < 384) == dark
    assert visit.said == []
    assert visit.stays_on(page_file.as_uri())

    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})  # about A4
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#again pre").first.is_visible(), "commands are printed"
    assert switch.is_visible(), "curves have a legend"
    page.wait_for_function("document.documentElement.scrollWidth <= 720")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_page_that_follows_runs(
    browser: Browser, tmp_path: Path, composed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PAUSE", 0.0)
    slow, fast = composed("name=slow", "data=mnist5k"), composed("name=fast", "data=mnist5k", "optimizer.lr=0.1")
    with ReportServer(LiveReport([str(tmp_path / "runs")], None), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        page = browser.new_page(viewport={"width": 900, "height": 700})
        visit = Visit(page)
        page.goto(server.url)
        page.wait_for_selector("html[data-drawn=yes]")
        page.wait_for_function("document.getElementById('live').innerText.includes('waits for the first one')")
        write_run(tmp_path / "runs" / "slow", slow, accuracy=0.9)
        page.wait_for_function("document.getElementById('live').innerText.includes('1 of 1 done')")
        going = write_run(tmp_path / "runs" / "fast", fast, accuracy=0.95, status="interrupted", epochs=2)
        page.wait_for_function("document.getElementById('live').innerText.includes('1 of 2 done')")
        page.wait_for_selector("[data-only=fast]")
        sections = page.evaluate("[...document.querySelector('main').children].map(part => part.id).filter(id => id)")
        assert sections[:4] == ["answer", "arms", "curves", "pairwise"], "new sections are in their places"
        of_run = browser.new_page()
        of_run.goto(f"{server.url}/{page.locator('#problems a').get_attribute('href')}")
        assert of_run.locator("h1").inner_text() == "fast · seed 0: interrupted"
        of_run.click("a[href='run.json']")
        assert '"interrupted"' in of_run.locator("body").inner_text()
        of_run.close()
        assert page.locator("h1").inner_text() == "Best arm: slow, 90.00\u00a0% test accuracy"
        page.click("[data-only=fast]")
        page.locator("#errors").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('curves').scrollIntoView()")
        shutil.rmtree(going)
        write_run(going, fast, accuracy=0.95, epochs=5)
        page.wait_for_function("document.querySelector('h1').innerText.includes('fast')", timeout=20_000)
        page.wait_for_function(
            "document.querySelector('#plot-curves_error .role-axis-label').textContent.includes('5')"
        )
        count_lines(page, 1)
        assert abs(page.evaluate("document.getElementById('curves').getBoundingClientRect().top")) < 3, (
            "its place is kept"
        )
        assert page.locator("[data-arm=slow]").get_attribute("aria-pressed") == "false"
        assert "2 of 2 done" in page.locator("#live").inner_text()
        assert visit.said == []
        assert visit.stays_on(server.url)
        page.close()
        server.shutdown()
        thread.join()


def test_drawing(visit: Visit, mnist_train: Callable[..., int]) -> None:
    settings = [
        "data=mnist5k",
        "trainer.epochs=4",
        "trainer.threads=1",
        "trainer.device=cpu",
        "logger=none",
        "quiet=true",
    ]
    for model in ("lenet5", "mlp"):
        assert mnist_train(*settings, f"model={model}", f"hydra.run.dir=runs/{model}", "optimizer.lr=0.03") == 0
    demo = Demo(load_networks(["runs"]), port=0)
    thread = threading.Thread(target=demo.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        page = visit.page
        page.goto(demo.url)
        box = page.locator("#pad").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.15 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.85 * box["height"], steps=10)
        page.mouse.up()
        page.wait_for_selector(".network")
        assert page.locator(".network h2").all_inner_texts() == ["lenet5: 1", "mlp: 1"]
        assert page.locator("#seen").evaluate("image => image.naturalWidth") == 28
        page.click("#clear")
        assert page.locator(".network").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert visit.said == []
        assert visit.stays_on(demo.url)
    finally:
        demo.shutdown()
        demo.server_close()
        thread.join()
