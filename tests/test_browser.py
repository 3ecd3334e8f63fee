"""The built pages in a real browser: no error, no request to the outside, maths, tables and figures there."""

import functools
import http.server
import shutil
import threading

import pytest

pytestmark = pytest.mark.book

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = [
    "index",
    "book/choose",
    "book/notation",
    "book/suites/tiny_clip",
    "book/suites/lora",
    "book/suites/tiny_gpt2",
    "book/suites/tiny_t5",
    "book/suites/tiny_nyu",
    "book/suites/clip",
    "book/methods/simple_ensemble",
    "book/methods/task_arithmetic",
    "book/methods/ties_merging",
    "book/methods/layer_wise_adamerging",
    "book/methods/we_moe",
    "book/results/published",
    "book/results/leaderboard",
    "book/howto/own_checkpoints",
    "book/howto/merge_your_own",
    "book/references",
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def context(browser):
    """The browser's context of a size and a theme: its pages share what was loaded, as those of a reader do."""
    return functools.cache(
        lambda width, height, theme: browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme
        )
    )


@pytest.fixture
def opened(context, address):
    """Opens a page in a window of the wanted size and theme, and checks what must hold on every page."""
    pages = []

    def open_page(name, viewport=WIDE, theme="light"):
        page, errors, outside = context(**viewport, theme=theme).new_page(), [], []
        pages.append(page)
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:")) else outside.append(r.url))
        page.goto(f"{address}{name}.html")
        page.wait_for_load_state("networkidle")
        assert errors == [] and outside == []
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("viewport", "theme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_page(opened, name, viewport, theme):
    page = opened(name, viewport, theme)
    assert page.title() and page.locator("article h1").count() == 1
    too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert too_wide <= 0, f"the page is {too_wide} px wider than the window"
    broken = page.evaluate("[...document.images].filter(i => i.complete && i.naturalWidth === 0).map(i => i.src)")
    assert broken == []
    assert page.evaluate("[...document.images].filter(i => !i.alt).map(i => i.src)") == [], "a picture without alt"


@pytest.mark.parametrize(("viewport", "scrolls"), [(PHONE, True), (WIDE, False)], ids=["phone", "wide"])
def test_a_wide_figure_stays_readable_on_a_phone(opened, viewport, scrolls):
    """It scrolls in a box of its own, at no less than two thirds of the size that it was drawn for."""
    sizes = "e => [e.naturalWidth, e.clientWidth, e.parentElement.scrollWidth > e.parentElement.clientWidth]"
    page = opened("book/methods/ties_merging", viewport)
    drawn, shown, scrolling = page.locator(".fusion-wide img").first.evaluate(sizes)
    assert drawn > 640 and scrolling == scrolls
    assert shown > drawn * 2 / 3


def test_a_chapter_has_maths_tables_and_figures(opened):
    page = opened("book/methods/ties_merging")
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() > 10 and page.locator("mjx-merror").count() == 0
    assert page.locator("span.eqno").count() == 3, "numbered equations"
    assert page.locator("table.fusion-table").count() == 2 and page.locator("dl.fusion-facts").count() == 1
    assert page.locator("figure").count() >= 4 and page.locator("figcaption").first.inner_text().startswith("Fig.")
    assert page.locator("table.fusion-table th").first.inner_text() == "Method"


def test_no_equation_is_wider_than_its_column(context, address, site):
    """One that is must be scrolled, and its end is not seen."""
    page, cut = context(**WIDE, theme="light").new_page(), {}
    for chapter in sorted((site / "book" / "methods").glob("*.html")):
        page.goto(f"{address}book/methods/{chapter.stem}.html")
        page.evaluate("MathJax.startup.promise.then(() => null)")
        equations = "[...document.querySelectorAll('div.math mjx-container')]"
        wide = "filter(e => e.scrollWidth > e.clientWidth + 2).map(e => e.closest('div.math').id)"
        cut[chapter.stem] = page.evaluate(f"{equations}.{wide}")
    page.close()
    assert len(cut) > 10 and {name: found for name, found in cut.items() if found} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tables_are_readable(opened, theme):
    """Text and what lies behind it differ by the contrast that guidelines ask for."""
    page = opened("book/results/leaderboard", theme=theme)
    ratio = page.evaluate(
        """() => {
        const cell = document.querySelector("table.fusion-table td");
        const rgb = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        let behind = cell;
        while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
        const [a, b] = [light(rgb(getComputedStyle(cell).color)), light(rgb(getComputedStyle(behind).backgroundColor))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    )
    assert ratio > 7


def test_a_leaderboard_can_be_filtered_and_sorted(opened):
    page = opened("book/results/leaderboard")
    table = page.locator("table.fusion-table[data-facets]").first
    shown = table.locator("tbody tr:visible")
    everything = shown.count()
    page.locator("form.fusion-filters").first.get_by_label("Kind").select_option("ensemble")
    names = shown.locator("th").all_inner_texts()
    assert "Pretrained" in names and "Simple Ensemble" in names and "Task Arithmetic" not in names
    page.locator("form.fusion-filters").first.get_by_label("Kind").select_option("")
    assert shown.count() == everything
    table.get_by_role("button", name="Stored").click()
    stored = [float(text.split()[0]) for text in table.locator("tbody tr.rule ~ tr td:nth-child(5)").all_inner_texts()]
    assert stored == sorted(stored, reverse=True) and stored[0] > stored[-1]
    assert table.locator("th[aria-sort=descending]").inner_text() == "Stored"


@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_a_table_wider_than_its_column_says_so_and_can_be_scrolled(opened, viewport):
    page = opened("book/results/leaderboard", viewport)
    frame, box = page.locator(".fusion-scroll").first, page.locator(".fusion-table-wrap").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth"), "else this page shows nothing"
    assert frame.locator(".fusion-more").is_visible() and box.get_attribute("tabindex") == "0"
    assert "more-right" in frame.get_attribute("class") and "more-left" not in frame.get_attribute("class")
    box.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    page.wait_for_selector(".fusion-scroll.more-left:not(.more-right)")
    inside = page.locator("table.fusion-table th", has_text="Worst task").first.evaluate(
        "e => e.offsetLeft + e.offsetWidth <= e.closest('.fusion-table-wrap').clientWidth"
    )
    assert inside or viewport == PHONE, "the worst task is seen without scrolling"


@pytest.mark.parametrize("name", ["book/results/leaderboard", "book/results/published", "book/suites/tiny_nyu"])
def test_no_table_is_cut_on_paper(opened, name):
    page = opened(name, {"width": 718, "height": 1000})  # A4 within its margins
    page.emulate_media(media="print")
    cut = "[...document.querySelectorAll('.bd-article table')].filter(t => t.getBoundingClientRect().right > 718)"
    assert page.evaluate(f"{cut}.length") == 0
    assert page.locator(".fusion-edge:visible, .fusion-more:visible").count() == 0


def test_search_finds_a_method(opened):
    page = opened("search")
    page.fill("input[name=q] >> nth=-1", "election")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.search li", timeout=10_000)
    assert "TIES" in page.locator("ul.search").inner_text()
