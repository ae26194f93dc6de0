"""The tab Compare: two versions side by side, and the file that comes out of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Both

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def opened(console: Page) -> None:
    await expect(console.locator("#compare-b")).to_have_value("demo-2")


async def test_differences_are_marked_in_words(both: Both) -> None:
    _, console = await both()
    page = await console.open("compare")
    await opened(page)
    await expect(page.locator("#compare-a option[disabled]")).to_have_text(["demo-3 (available)"])
    await page.fill("#compare-queries", "outdoor rug\n\n kids rain boots \noutdoor rug")
    await page.click("#compare-submit")
    await expect(
        page.get_by_role("heading", name="1 of 2 queries differ", exact=True)
    ).to_be_visible()
    rug, boots = page.get_by_label("Query outdoor rug"), page.get_by_label("Query kids rain boots")
    await expect(rug.locator(".pill")).to_have_text("≠ differs")
    await expect(rug.locator(".only")).to_contain_text(["vinyl rugonly A", "outdoor carpetonly B"])
    await expect(boots.locator(".pill")).to_have_text("= same")
    await expect(boots.locator(".mark")).to_have_count(0)
    await page.check("#compare-only")
    await expect(boots).to_be_hidden()
    await expect(rug).to_be_visible()


async def test_the_file_is_text_to_a_spreadsheet(both: Both, tmp_path: Path) -> None:
    served, console = await both()
    served.engines["demo-1"].default = [("+ wrench", 0.9)]
    page = await console.open("compare")
    await opened(page)
    formula = '=HYPERLINK("http://x.example","y")'
    await page.fill("#compare-queries", f"{formula}\n@sum\noutdoor rug")
    await page.click("#compare-submit")
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Export CSV").click()
    download = await downloading.value
    assert download.suggested_filename == "requery-demo-1-demo-2.csv"
    await download.save_as(tmp_path / "it.csv")
    text = (tmp_path / "it.csv").read_text("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {row["query"] for row in rows} == {f"'{formula}", "'@sum", "outdoor rug"}
    assert {row["rewrite"] for row in rows if row["version"] == "demo-1"} == {
        "'+ wrench", "outdoor rug for patio", "vinyl rug"
    }  # fmt: skip
    alone = {
        row["rewrite"] for row in rows if row["only_here"] == "yes" and row["rewrite"][0] == "o"
    }
    assert alone == {"outdoor carpet"}
    assert not any(cell[:1] in "=+-@" for row in rows for cell in row.values() if cell)


async def test_a_list_that_is_too_long_is_not_sent(both: Both) -> None:
    served, console = await both()
    page = await console.open("compare")
    await opened(page)
    queries = [f"{a}{b} lamp" for a in "abcdefghijklmnopq" for b in "bcdfghjklmnp"][:201]
    await page.fill("#compare-queries", "\n".join(queries))
    await page.click("#compare-submit")
    await expect(page.locator("#compare-result")).to_contain_text("201 queries, and at most 200")
    await page.fill("#compare-queries", "\n".join(queries[1:]))
    await page.click("#compare-submit")
    await expect(
        page.get_by_role("heading", name="200 of 200 queries differ", exact=True)
    ).to_be_visible()
    assert len(set(served.engines["demo-1"].generated)) == 200


async def test_it_can_be_stopped(both: Both) -> None:
    served, console = await both()
    served.engines["demo-2"].hold()
    page = await console.open("compare")
    await opened(page)
    await page.fill("#compare-queries", "outdoor rug")
    await page.click("#compare-submit")
    await page.click("#compare-stop")
    await expect(page.locator("#compare-progress")).to_have_text("stopped after 0 of 1")
    served.engines["demo-2"].release()
    await page.click("#compare-submit")
    await expect(page.locator(".pair")).to_have_count(1)
