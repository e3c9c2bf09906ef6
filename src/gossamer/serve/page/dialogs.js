// The dialogs: settings, the API key, a name, a question, the shortcuts.

import { element, find } from "./dom.js";
import { applyTheme, SAMPLING, save } from "./settings.js";

export function setUpDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it, on the backdrop
    });
  }
  for (const { name, label, min, max, step, help } of SAMPLING) {
    const field = element("input", { type: "number", id: `set-${name}`, name, min, max, step, placeholder: "default",
      inputmode: "decimal", "aria-describedby": `help-${name}` });
    find("sampling").append(element("div", { class: "field" }, element("label", { for: field.id }, label), field,
      element("small", { id: `help-${name}` }, help)));
  }
}

// Show a dialog until it is closed; true if its form was sent.
function ask(id) {
  const dialog = find(id);
  const form = dialog.querySelector("form");
  return new Promise((resolve) => {
    let sent = false;
    const submit = (event) => {
      event.preventDefault();
      sent = true;
      dialog.close();
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener("close", () => {
      form.removeEventListener("submit", submit);
      resolve(sent);
    }, { once: true });
    dialog.showModal();
  });
}

// True when the user has given a key.
export async function askKey(api) {
  if (find("key-dialog").open) return false;
  find("key-problem").hidden = !api.rejected;
  find("key").value = "";
  if (!(await ask("key-dialog"))) return false;
  api.setKey(find("key").value.trim(), find("keep-key").checked);
  return true;
}

export async function askName(title) {
  find("name").value = title;
  return (await ask("name-dialog")) ? find("name").value.trim() : null;
}

export function confirmed(question, action) {
  find("question").textContent = question;
  find("question-action").textContent = action;
  return ask("question-dialog");
}

export function showShortcuts() {
  if (!find("shortcuts").open) find("shortcuts").showModal();
}

// Change the settings and the open conversation's system message; what is wrong in a field the browser itself tells.
export async function editSettings(settings, conversation, api) {
  const form = find("settings").querySelector("form");
  if (find("settings").open) return false;
  find("system").value = conversation.system;
  find("system-default").checked = Boolean(settings.system) && settings.system === conversation.system;
  for (const { name } of SAMPLING) form.elements[name].value = settings[name] ?? "";
  for (const name of ["stop", "thinking", "theme"]) form.elements[name].value = settings[name];
  find("chat-settings").hidden = conversation.mode === "text";
  find("forget-key").hidden = !api.key;
  find("forget-key").onclick = () => {
    api.setKey("", false);
    find("forget-key").hidden = true;
  };
  if (!(await ask("settings"))) return false;
  if (conversation.mode === "chat") {
    conversation.system = find("system").value;
    if (find("system-default").checked) settings.system = conversation.system;
    else if (settings.system === conversation.system) settings.system = "";
  }
  for (const { name } of SAMPLING) {
    const { value } = form.elements[name];
    settings[name] = value === "" ? null : Number(value);
  }
  for (const name of ["stop", "thinking", "theme"]) settings[name] = form.elements[name].value;
  save(settings);
  applyTheme(settings);
  return true;
}
