// Building the page's elements. Text becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

// An element; `attributes` whose value is a function are listeners, true stands for a bare attribute.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A picture out of those that index.html defines.
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

export function iconButton(name, label, click) {
  return element("button", { type: "button", class: "quiet", "aria-label": label, title: label, click }, icon(name));
}

export const find = (id) => document.getElementById(id);

// Tell a screen reader something that the eye sees anyway.
export function announce(text) {
  find("announcements").textContent = text;
}

// Copy a text. The clipboard's own interface is closed to pages that came over plain HTTP from another machine.
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = element("textarea", { class: "hidden-visually", "aria-hidden": "true" });
  area.value = text;
  const host = document.querySelector("dialog[open]") ?? document.body;
  const before = document.activeElement;
  host.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  before?.focus();
}

// A button that copies what `text()` gives and says for a moment that it has.
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    try {
      await copy(text());
      show("done", "Copied");
    } catch {
      show("problem", "The browser did not let this page copy");
    }
    setTimeout(() => show("copy", label), 1600);
  });
  const show = (picture, words) => {
    button.replaceChildren(icon(picture));
    button.setAttribute("aria-label", words);
    button.title = words;
    if (words !== label) announce(words);
  };
  return button;
}

// Hand the user a file.
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
