// Conversations to a JSON file and back. A file may come from anywhere: every field is checked and copied by name.

import { newId, VERSION } from "./conversation.js";

const FORMAT = "gossamer conversations";
const ENDS = ["stop", "length", "stopped", "problem", null];

export class BadFile extends Error {}

export function toFile(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

// The conversations of a file, with identifiers of their own: an import never replaces what is there.
export function fromFile(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new BadFile("This file is not JSON.");
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) {
    throw new BadFile("This file was not exported from a gossamer chat page.");
  }
  if (data.version !== VERSION) throw new BadFile(`This file's version ${Number(data.version)} is not known here.`);
  return data.conversations.map((item, place) => {
    try {
      return conversation(item);
    } catch (error) {
      if (error instanceof BadFile) throw new BadFile(`Conversation ${place + 1}: ${error.message}`);
      throw error;
    }
  });
}

function check(good, what) {
  if (!good) throw new BadFile(`${what} is missing or wrong; nothing was imported.`);
}

function field(item, name, type) {
  check(item !== null && typeof item === "object" && typeof item[name] === type, name);
  if (type === "number") check(Number.isFinite(item[name]), name);
  return item[name];
}

function conversation(item) {
  const mode = field(item, "mode", "string");
  check(mode === "chat" || mode === "text", "mode");
  check(Array.isArray(item.messages), "messages");
  const { length } = item.messages;
  const made = {
    version: VERSION,
    id: newId(),
    mode,
    title: field(item, "title", "string"),
    created: field(item, "created", "number"),
    updated: field(item, "updated", "number"),
    system: field(item, "system", "string"),
    first: link(item.first, 0, length, "first"),
    messages: item.messages.map((one, number) => message(one, number, length)),
    text: field(item, "text", "string"),
    before: item.before === null ? null : field(item, "before", "string"),
    last: null, // how fast a text was last continued is no part of it
  };
  const follows = (child, parent) => child === null || made.messages[child].parent === parent;
  check(follows(made.first, null), "first");
  made.messages.forEach((one, number) => check(follows(one.child, number), "child"));
  return made;
}

function message(item, number, length) {
  const role = field(item, "role", "string");
  check(role === "user" || role === "assistant", "role");
  check(ENDS.includes(item.end), "end");
  return {
    parent: link(item.parent, 0, number, "parent"),
    child: link(item.child, number + 1, length, "child"),
    role,
    text: field(item, "text", "string"),
    reasoning: field(item, "reasoning", "string"),
    created: field(item, "created", "number"),
    end: item.end,
    problem: item.problem === null ? null : field(item, "problem", "string"),
    usage: figures(item.usage, ["prompt", "cached", "completion"], "usage"),
    seconds: figures(item.seconds, ["first", "total"], "seconds"),
    model: null, // ratings are of this server's answers
    sampling: null,
    rating: null,
  };
}

function link(value, least, end, what) {
  check(value === null || (Number.isInteger(value) && value >= least && value < end), what);
  return value;
}

function figures(value, names, what) {
  if (value === null) return null;
  check(typeof value === "object", what);
  return Object.fromEntries(names.map((name) => [name, field(value, name, "number")]));
}
