// Markdown inside a block: text into DOM nodes, in one pass whose time grows with the text's length alone, whatever
// brackets and stars a model may write. Nothing is ever read as HTML but a line break, and no picture is loaded.

const PLAIN = /[^\\`*_~[\]!<h]+/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const SPACE = /\s/;
const MARK = /[\p{P}\p{S}]/u;
const ADDRESS = /https?:\/\/[^\s<>"'`\\|]+/y;
const ANGLE = /<(https?:\/\/[^\s<>]+)>/y;
const BREAK = /<br ?\/?>/iy;
const TARGET = /\(\s*(?:<([^<>\n]*)>|([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const DEEPEST = 16;
const LONGEST_TARGET = 4096;

// The address if a click on it may be offered: whole, and of the web.
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

export function inline(text) {
  return new Inline(text).nodes();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.said = ""; // plain text that is not among the parts yet
    this.parts = []; // finished nodes and, among them, the text nodes of marks that may still pair
    this.openers = []; // { char, size, both, index, node } of emphasis not closed yet
    this.open = { "*": 0, _: 0, "~": 0 };
    this.brackets = []; // { index, image, openers } of links not closed yet
    this.unclosed = new Set(); // lengths of backtick runs that nothing closes any more
  }

  nodes() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return this.parts;
  }

  say(text) {
    this.said += text;
  }

  flush() {
    if (this.said) this.parts.push(document.createTextNode(this.said));
    this.said = "";
  }

  // Add a node; where it stands among the parts.
  put(node) {
    this.flush();
    return this.parts.push(node) - 1;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) {
      this.at += plain[0].length;
      return this.say(plain[0]);
    }
    const char = this.text[this.at];
    if (char === "\\") return this.escape();
    if (char === "`") return this.code();
    if (char === "*" || char === "_" || char === "~") return this.marks(char);
    if (char === "[" || (char === "!" && this.text[this.at + 1] === "[")) return this.bracket(char);
    if (char === "]") return this.link();
    if (char === "<") return this.angle();
    if (char === "h" && !/\w/.test(this.text[this.at - 1] ?? "")) return this.address();
    this.at += 1;
    this.say(char);
  }

  escape() {
    const next = this.text[this.at + 1];
    const escaped = next !== undefined && PUNCTUATION.test(next);
    this.say(escaped ? next : "\\");
    this.at += escaped ? 2 : 1;
  }

  run(char) {
    let end = this.at;
    while (this.text[end] === char) end += 1;
    return end - this.at;
  }

  code() {
    const size = this.run("`");
    const from = this.at + size;
    let end = from;
    while (!this.unclosed.has(size)) {
      end = this.text.indexOf("`", end);
      if (end < 0) {
        this.unclosed.add(size);
        break;
      }
      let after = end;
      while (this.text[after] === "`") after += 1;
      if (after - end === size) {
        let inner = this.text.slice(from, end).replaceAll("\n", " ");
        if (inner.length > 2 && inner.startsWith(" ") && inner.endsWith(" ") && inner.trim()) inner = inner.slice(1, -1);
        const made = document.createElement("code");
        made.textContent = inner;
        this.put(made);
        this.at = after;
        return;
      }
      end = after;
    }
    this.at = from;
    this.say("`".repeat(size));
  }

  // A run of stars, underscores or tildes: it closes what it can, and what is left of it may open.
  marks(char) {
    const size = this.run(char);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + size] ?? " ";
    this.at += size;
    const left = !SPACE.test(after) && (!MARK.test(after) || SPACE.test(before) || MARK.test(before));
    const right = !SPACE.test(before) && (!MARK.test(before) || SPACE.test(after) || MARK.test(after));
    const word = char === "_";
    const opens = left && (!word || !right || MARK.test(before));
    const closes = right && (!word || !left || MARK.test(after));
    let rest = size;
    while (closes && rest > 0 && this.open[char] > 0) {
      const used = this.close(char, rest, opens && closes);
      if (!used) break;
      rest -= used;
    }
    if (!rest) return;
    if (opens && this.openers.length < DEEPEST && !(char === "~" && size > 2)) {
      const node = document.createTextNode(char.repeat(rest));
      this.openers.push({ char, size: rest, both: closes, index: this.put(node), node });
      this.open[char] += 1;
    } else {
      this.say(char.repeat(rest));
    }
  }

  // Pair a closing run with the nearest opening one; how many of its marks that takes.
  close(char, rest, both) {
    let place = this.openers.length - 1;
    while (this.openers[place].char !== char) place -= 1;
    const opener = this.openers[place];
    const clash = (both || opener.both) && (opener.size + rest) % 3 === 0 && (opener.size % 3 || rest % 3);
    if (char === "~" ? opener.size !== rest : clash) return 0;
    this.drop(place + 1);
    const used = char === "~" ? rest : Math.min(opener.size, rest, 2);
    const name = char === "~" ? "del" : used === 2 ? "strong" : "em";
    this.wrap(opener.index + 1, document.createElement(name));
    opener.size -= used;
    opener.node.data = char.repeat(opener.size);
    if (!opener.size) this.drop(place);
    this.brackets = this.brackets.filter((bracket) => bracket.index <= opener.index);
    return used;
  }

  drop(from) {
    for (const opener of this.openers.splice(from)) this.open[opener.char] -= 1;
  }

  wrap(from, around) {
    this.flush();
    for (const node of this.parts.splice(from)) around.append(node);
    this.parts.push(around);
  }

  bracket(char) {
    const mark = char === "!" ? "![" : "[";
    const index = this.put(document.createTextNode(mark));
    this.brackets.push({ index, image: char === "!", openers: this.openers.length });
    this.at += mark.length;
  }

  // The end of [text]: a link if an address of the web follows, else the characters as they are.
  link() {
    const bracket = this.brackets.pop();
    this.at += 1;
    const target = bracket && this.text[this.at] === "(" && this.target();
    if (!target) return this.say("]");
    this.at += target.length;
    this.drop(bracket.openers);
    const anchor = linkTo(target.address);
    this.wrap(bracket.index + 1, anchor);
    if (!anchor.textContent) anchor.textContent = target.address;
    this.parts.splice(bracket.index, 1); // the bracket itself
    if (bracket.image) anchor.classList.add("picture");
    this.brackets = []; // no link inside a link
  }

  target() {
    TARGET.lastIndex = 0;
    const found = TARGET.exec(this.text.slice(this.at, this.at + LONGEST_TARGET));
    const address = found && safeAddress(found[1] ?? found[2]);
    return address ? { address, length: found[0].length } : null;
  }

  angle() {
    const address = this.match(ANGLE);
    if (address && safeAddress(address[1])) {
      const anchor = linkTo(safeAddress(address[1]));
      anchor.textContent = address[1];
      this.put(anchor);
      this.at += address[0].length;
      return;
    }
    const broken = this.match(BREAK);
    if (broken) this.put(document.createElement("br"));
    else this.say("<");
    this.at += broken ? broken[0].length : 1;
  }

  address() {
    const found = this.match(ADDRESS);
    const text = found && trimmed(found[0]);
    if (!found || this.brackets.length || !safeAddress(text)) {
      this.at += 1;
      return this.say("h");
    }
    const anchor = linkTo(safeAddress(text));
    anchor.textContent = text;
    this.put(anchor);
    this.at += text.length;
  }
}

// An address in running text, without the punctuation that belongs to the sentence.
function trimmed(address) {
  let end = address.length;
  let opened = 0;
  for (const char of address) opened += char === "(" ? 1 : char === ")" ? -1 : 0;
  while (end > 0) {
    const last = address[end - 1];
    if (last === ")" && opened < 0) opened += 1;
    else if (!".,;:!?*_~]".includes(last)) break;
    end -= 1;
  }
  return address.slice(0, end);
}

function linkTo(address) {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}
