// Markdown's blocks: text into a tree of plain objects. Every block tells the line it begins at, so that a growing text
// need be read again from its last block only. HTML is text here, and so is indented code, which models seldom mean.

const DEEPEST = 12; // nested quotes and lists; what lies deeper is read as paragraphs

const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;

export function parse(text) {
  return blocks(text.split("\n"), 0);
}

// Whether a line ends the fence that `fence` = { mark, size } began.
export function closes(line, fence) {
  const found = FENCE.exec(line);
  return found !== null && found[2][0] === fence.mark && found[2].length >= fence.size && !found[3].trim();
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = (depth < DEEPEST && (fenced(lines, at) ?? heading(lines, at) ?? rule(lines, at) ??
      quote(lines, at, depth) ?? list(lines, at, depth) ?? table(lines, at))) || paragraph(lines, at, depth);
    block.line = at;
    found.push(block);
    at = block.end;
  }
  return found;
}

function begins(lines, at) {
  const line = lines[at];
  return isFence(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) ||
    tableAt(lines, at) !== null;
}

function isFence(line) {
  const found = FENCE.exec(line);
  return found !== null && !(found[2][0] === "`" && found[3].includes("`"));
}

function fenced(lines, at) {
  if (!isFence(lines[at])) return null;
  const [, indent, marks, info] = FENCE.exec(lines[at]);
  const fence = { mark: marks[0], size: marks.length, indent: indent.length };
  const inner = [];
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], fence)) {
    inner.push(dedent(lines[end], fence.indent));
    end += 1;
  }
  const closed = end < lines.length;
  const language = info.trim().split(/\s/)[0].slice(0, 40);
  return { type: "code", language, text: inner.join("\n"), fence, closed, end: closed ? end + 1 : end };
}

// Take up to `count` leading spaces away.
export function dedent(line, count) {
  let spaces = 0;
  while (spaces < count && line[spaces] === " ") spaces += 1;
  return line.slice(spaces);
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  let text = lines[at].slice(found[0].length).trim();
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  if (end === 0 || /\s/.test(text[end - 1])) text = text.slice(0, end).trimEnd();
  return { type: "heading", level: found[1].length, text, end: at + 1 };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { type: "rule", end: at + 1 } : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  const inner = [];
  let end = at;
  while (end < lines.length && lines[end].trim()) {
    if (QUOTE.test(lines[end])) inner.push(lines[end].replace(QUOTE, ""));
    else if (begins(lines, end)) break;
    else inner.push(lines[end]);
    end += 1;
  }
  return { type: "quote", blocks: blocks(inner, depth + 1), end };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first || first[1].length > 3) return null;
  const base = first[1].length;
  const kind = first[2].at(-1);
  const made = { type: "list", ordered: kind === "." || kind === ")", start: parseInt(first[2], 10), loose: false };
  const items = [];
  let inset = 0; // columns of the current item's text
  let blank = false; // the line before was
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (!line.trim()) {
      blank = true;
      items.at(-1)?.push("");
      continue;
    }
    const indent = line.length - line.trimStart().length;
    const marker = ITEM.exec(line);
    if (marker && indent < base + 2 && !RULE.test(line)) {
      if (marker[2].at(-1) !== kind) break;
      if (blank && items.length) made.loose = true;
      const spaces = marker[3].length > 4 ? 1 : Math.max(marker[3].length, 1);
      inset = marker[1].length + marker[2].length + spaces;
      items.push([line.slice(inset)]);
    } else if (indent >= base + 2) {
      if (blank && !marker) made.loose = true;
      items.at(-1).push(dedent(line, inset));
    } else if (!blank && !begins(lines, end)) {
      items.at(-1).push(line);
    } else {
      break;
    }
    blank = false;
  }
  made.items = items.map((item) => blocks(item, depth + 1));
  return { ...made, end };
}

function table(lines, at) {
  const columns = tableAt(lines, at);
  if (columns === null) return null;
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && !(QUOTE.test(lines[end]) || isFence(lines[end]) ||
    HEADING.test(lines[end]))) {
    rows.push(cells(lines[end]).slice(0, columns.length));
    end += 1;
  }
  return { type: "table", columns, head: cells(lines[at]), rows, end };
}

// The alignment of a table's columns if one begins here: a line with bars above one with dashes.
function tableAt(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const dashes = cells(lines[at + 1]);
  if (!dashes.every((cell) => /^:?-+:?$/.test(cell)) || dashes.length !== cells(lines[at]).length) return null;
  return dashes.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
}

function cells(line) {
  const found = [""];
  const text = line.trim();
  for (let at = text.startsWith("|") ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      found[found.length - 1] += "|";
      at += 1;
    } else if (text[at] === "|") {
      if (at < text.length - 1) found.push("");
    } else {
      found[found.length - 1] += text[at];
    }
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !(depth < DEEPEST && begins(lines, end))) end += 1;
  return { type: "paragraph", text: lines.slice(at, end).join("\n"), end };
}
