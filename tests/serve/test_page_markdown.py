"""The chat page's Markdown: what it makes of a text, whole or growing, and how long it takes."""

from __future__ import annotations

from typing import Any

import pytest

from browser import ATTACKS

expect = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install playwright").expect


MARKDOWN = {
    "# Title #\ntext": "<h3>Title</h3><p>text</p>",
    "a *b **c** d* e": "<p>a <em>b <strong>c</strong> d</em> e</p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    "~~gone~~ `a ** b` ``c ` d``": "<p><del>gone</del> <code>a ** b</code> <code>c ` d</code></p>",
    r"\*not\* **open": "<p>*not* **open</p>",
    "***both***": "<p><em><strong>both</strong></em></p>",
    "- a\n- b\n  - c\n\nend": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>end</p>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "> a\nb\n\nc": "<blockquote><p>a\nb</p></blockquote><p>c</p>",
    "---\nx": "<hr><p>x</p>",
    "[a *b*](https://x.test/a_b_(c)) z": '<p><a href="https://x.test/a_b_(c)">a <em>b</em></a> z</p>',
    "see https://x.test/a(b). End": '<p>see <a href="https://x.test/a(b)">https://x.test/a(b)</a>. End</p>',
    "[a](nowhere) [b]": "<p>[a](nowhere) [b]</p>",
    "*[a*](https://x.test/)": '<p><em>[a</em>](<a href="https://x.test/">https://x.test/</a>)</p>',
    "a<br>b <b>c</b>": "<p>a<br>b &lt;b&gt;c&lt;/b&gt;</p>",
    "x\n|a|b|\n|-|:-:|\n|1|2\\|3|": "<p>x</p><div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1"
    "</td><td>2|3</td></tr></tbody></table></div>",
}
AS_HTML = """async (text) => {
    const { render } = await import("/page/markdown/view.js");
    const made = document.createElement("div");
    made.append(...render(text));
    for (const each of made.querySelectorAll("*"))
        for (const name of ["class", "tabindex", "role", "aria-label", "target", "rel"]) each.removeAttribute(name);
    return made.innerHTML;
}"""


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_becomes_the_html_that_is_expected(page_once: Any, text: str) -> None:
    assert page_once.evaluate(AS_HTML, text) == MARKDOWN[text]


STREAMED = """async ([text, step]) => {
    const { MarkdownView, render } = await import("/page/markdown/view.js");
    const grown = document.createElement("div"), whole = document.createElement("div");
    const view = new MarkdownView(grown);
    for (let end = 0; end <= text.length; end += step) view.show(text.slice(0, end));
    view.show(text);
    whole.append(...render(text));
    return [grown.innerHTML, whole.innerHTML];
}"""


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize(
    "text",
    [
        ATTACKS,
        "\n\n".join(MARKDOWN),
        "a\n```py\n  x\n\n  ~~~\n``\n```\nb\n  ```\n   y\n  z",
        "- a\n  ```\n  x\n  ```\n- b\nc\n-d\n- e",
    ],
)
def test_a_growing_text_looks_as_the_whole_does(page_once: Any, text: str, step: int) -> None:
    grown, whole = page_once.evaluate(STREAMED, [text, step])
    assert grown == whole


@pytest.mark.parametrize(
    "piece", ["[", "*a_", "**a *b ", "`a``", "![a](", "> ", "- ", "|a", "<", "(((https://a.b/(", "[a](" + "(" * 9]
)
def test_no_text_takes_long(page_once: Any, piece: str) -> None:
    spent = """async (text) => {
        const { render } = await import("/page/markdown/view.js");
        const began = performance.now();
        render(text);
        return performance.now() - began;
    }"""
    assert page_once.evaluate(spent, piece * (60_000 // len(piece))) < 5000


def test_a_long_answer_stays_quick(page_once: Any) -> None:
    """Each piece of a long answer is drawn in the time that its last block takes, not the whole."""
    spent = """async ([block, count]) => {
        const { MarkdownView } = await import("/page/markdown/view.js");
        const view = new MarkdownView(document.createElement("div"));
        let text = "", most = 0;
        for (let made = 0; made < count; made += 1) {
            text += block;
            const began = performance.now();
            view.show(text);
            if (made > count - 50) most += performance.now() - began;
        }
        return [view.tail.length, view.root.childNodes.length, most / 50];
    }"""
    tail, children, each = page_once.evaluate(spent, ["A paragraph of **some** words.\n\n", 2000])
    assert (tail, children) == (1, 2000)
    assert each < 20
    _, children, each = page_once.evaluate(spent, ["```\nx\n" + "line of code\n" * 3000, 1])
    assert children == 1
