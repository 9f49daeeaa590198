"""A real browser without a window, and what is measured in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

WIDTHS = {"wide": 1280, "narrow": 360}

OVERFLOWING = """
() => {
  const width = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > width) found.push(`page ${document.documentElement.scrollWidth}`);
  for (const element of document.body.querySelectorAll("*")) {
    if (element.closest("svg") && element.tagName !== "svg") continue;
    const box = element.getBoundingClientRect(), scrolls = element.closest(".wide");
    const right = scrolls && scrolls !== element
      ? scrolls.getBoundingClientRect().left - scrolls.scrollLeft + scrolls.scrollWidth : width;
    if (box.left < -0.5 || box.right > right + 0.5) found.push(`${element.tagName} ${element.className} ${box.right}`);
    const cut = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline";
    if (cut && element !== scrolls && element.tagName !== "svg")
      found.push(`${element.tagName} ${element.className} holds ${element.scrollWidth} in ${element.clientWidth}`);
  }
  return found;
}
"""
"""What sticks out of the page, or out of a table that may be scrolled; what is wider than its own box."""

CONTRAST = """
() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const found = [];
  for (const element of document.querySelectorAll("p, h1, h2, h3, th, td, small, caption, figcaption, svg")) {
    const ink = light(getComputedStyle(element).color);
    found.push((Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));
  }
  return [ground, Math.min(...found)];
}
"""
"""Luminance of the ground, and the lowest contrast of any words with it (WCAG 2)."""


@contextmanager
def open_browser(*args: str) -> Iterator[Browser]:
    """Chromium with these options."""
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert program, "no Chromium: apt-get install chromium-headless-shell"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *args])
        yield browser
        browser.close()
