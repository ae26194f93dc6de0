"""``/docs``: all its files come from the service."""

from __future__ import annotations

import re

from tests.support.service import Service


async def test_the_page_names_only_files_that_are_served(service: Service) -> None:
    page = await service.client.get("/docs")
    named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(named) == 4
    for path in ("docs", *named):
        answer = await service.client.get(f"/{path}")
        assert answer.status_code == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_no_other_file_of_the_package_is_served(service: Service) -> None:
    for name in ("core.py", "redoc.standalone.js", "..%2fcore.py"):
        assert (await service.client.get(f"/docs/{name}")).status_code == 404
