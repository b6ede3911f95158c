"""Write the parts of the pages that are made from the code: ``python -m docs.tools``. ``scripts/docs`` does it too."""

from __future__ import annotations

from docs.tools.pages import GENERATED_PAGES, generated

for page in GENERATED_PAGES:
    text = generated(page)
    if text != page.read_text(encoding="utf-8"):
        page.write_text(text, encoding="utf-8")
        print(f"written: {page.name}")
