"""What tests of pages measure in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright import sync_api


def contrast(page: sync_api.Page, selector: str) -> float:
    """Works out the contrast ratio, 1 to 21, of an element's text and what is behind it, as WCAG 2 defines it."""
    text, behind = page.locator(selector).first.evaluate(
        """element => {
            const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
            let box = element;
            while (box && numbers(getComputedStyle(box).backgroundColor)[3] === 0) box = box.parentElement;
            return [numbers(getComputedStyle(element).color), numbers(getComputedStyle(box).backgroundColor)];
        }"""
    )

    def luminance(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(text), luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
