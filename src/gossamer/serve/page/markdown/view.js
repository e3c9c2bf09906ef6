// Shows Markdown that may still be growing. What can no longer change is left alone: a new piece costs no more than the
// last block, and inside a block of code no more than its last line.

import { copyButton, element } from "../dom.js";
import { closes, dedent, parse } from "./blocks.js";
import { inline } from "./inline.js";

export function render(text) {
  return parse(text).map(rendered);
}

export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.settled = 0; // characters whose blocks are finished
    this.tail = []; // nodes of the others
    this.code = null; // the open block of code at the very end
  }

  // Show `text`, which begins with what was shown before.
  show(text) {
    this.text = text;
    if (!(this.code && this.grow())) this.again();
  }

  again() {
    const from = this.settled;
    const rest = this.text.slice(from);
    const blocks = parse(rest);
    const nodes = blocks.map(rendered);
    for (const node of this.tail) node.remove();
    this.root.append(...nodes);
    const lines = lineStarts(rest);
    // The last line may still become something else; blocks before one that begins in a finished line may not.
    let last = blocks.length - 1;
    while (last > 0 && blocks[last].line >= lines.length - 1) last -= 1;
    if (last > 0) {
      this.tail = nodes.slice(last);
      this.settled = from + lines[blocks[last].line];
    } else {
      this.tail = nodes;
    }
    this.code = null;
    const open = blocks.at(-1);
    if (open?.type === "code" && !open.closed && open.end - open.line > 1) this.follow(open, nodes.at(-1), from + lines.at(-1));
  }

  // Remember the block of code that the text ends in; `at`: where its last line begins.
  follow(block, node, at) {
    const code = node.querySelector("code");
    const cut = block.text.lastIndexOf("\n") + 1;
    const whole = document.createTextNode(block.text.slice(0, cut));
    const partial = document.createTextNode(block.text.slice(cut));
    code.replaceChildren(whole, partial);
    this.code = { fence: block.fence, whole, partial, at };
  }

  // Add what is new to the open block of code; false if it ends there.
  grow() {
    const { fence, whole, partial } = this.code;
    const lines = this.text.slice(this.code.at).split("\n");
    const last = lines.pop();
    if (lines.some((line) => closes(line, fence)) || closes(last, fence)) return false;
    for (const line of lines) {
      whole.appendData(`${dedent(line, fence.indent)}\n`);
      this.code.at += line.length + 1;
    }
    partial.data = dedent(last, fence.indent);
    return true;
  }
}

function lineStarts(text) {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  return starts;
}

const MAKERS = {
  paragraph: (block) => element("p", {}, ...inline(block.text)),
  // The page has a heading of its own: those of an answer come below it.
  heading: (block) => element(`h${Math.min(block.level + 2, 6)}`, { class: `level-${block.level}` }, ...inline(block.text)),
  rule: () => element("hr"),
  quote: (block) => element("blockquote", {}, ...block.blocks.map(rendered)),
  code,
  list,
  table,
};

function rendered(block) {
  return MAKERS[block.type](block);
}

function code(block) {
  const text = element("code", {}, block.text);
  return element("figure", { class: "code" },
    element("figcaption", {}, element("span", {}, block.language || "text"), copyButton("Copy code", () => text.textContent)),
    element("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${block.language || "text"}` }, text));
}

function list(block) {
  const made = element(block.ordered ? "ol" : "ul", block.ordered && block.start !== 1 ? { start: block.start } : {});
  for (const blocks of block.items) {
    const item = element("li");
    for (const [place, inner] of blocks.entries()) {
      const task = place === 0 && inner.type === "paragraph" && /^\[([ xX])\] /.exec(inner.text);
      if (task) {
        const label = task[1] === " " ? "to do" : "done";
        item.classList.add("task");
        item.append(element("input", { type: "checkbox", disabled: true, "aria-label": label, checked: task[1] !== " " }));
        inner.text = inner.text.slice(4);
      }
      if (inner.type === "paragraph" && !block.loose) item.append(...inline(inner.text));
      else item.append(rendered(inner));
    }
    made.append(item);
  }
  return made;
}

function table(block) {
  const cell = (name, text, column) => element(name, { class: `align-${block.columns[column]}` }, ...inline(text));
  const head = element("tr", {}, ...block.head.map((text, column) => cell("th", text, column)));
  const rows = block.rows.map((row) =>
    element("tr", {}, ...block.columns.map((_, column) => cell("td", row[column] ?? "", column))));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, made);
}
