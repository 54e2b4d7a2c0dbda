"""What a page's buttons save."""

import csv


def saved_csv(page, name):
    """The rows of a table saved as CSV, by their columns."""
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save as CSV: {name}", exact=True).click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
