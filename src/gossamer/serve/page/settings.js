// What the user has set: how to sample, how the page looks. Kept in this browser; an empty value is the server's own.

const KEPT = "gossamer-settings";

// Fields of a request, with the limits that the API states.
export const SAMPLING = [
  { name: "temperature", label: "Temperature", min: 0, max: 100, step: "any", help: "0 takes the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.001, max: 1, step: "any", help: "share of probability to choose from" },
  { name: "top_k", label: "Top k", min: 0, max: 2147483647, step: 1, help: "tokens to choose from; 0: all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: "any", help: "of the likeliest token’s probability" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, step: "any", help: "1: none" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: "any", help: "0: none" },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: "any", help: "0: none" },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 2147483647, step: 1, help: "tokens" },
  { name: "seed", label: "Seed", min: -(2 ** 53 - 1), max: 2 ** 53 - 1, step: 1, help: "same seed, same answer" },
];
const SHARE = 4; // an answer may take one part in so many of the context: a model that finds no end would fill it
const TEXT_TOKENS = 256; // of a continuation, unless the user says otherwise: a base model does not end by itself

const UNSET = { ...Object.fromEntries(SAMPLING.map(({ name }) => [name, null])), stop: "", thinking: "", theme: "",
  system: "" };

export function load() {
  let kept;
  try {
    kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    kept = {};
  }
  const settings = { ...UNSET };
  for (const { name, min, max } of SAMPLING) {
    if (typeof kept[name] === "number" && kept[name] >= min && kept[name] <= max) settings[name] = kept[name];
  }
  for (const name of ["stop", "thinking", "theme", "system"]) if (typeof kept[name] === "string") settings[name] = kept[name];
  return settings;
}

export function save(settings) {
  localStorage.setItem(KEPT, JSON.stringify(settings));
}

export function applyTheme(settings) {
  if (settings.theme === "light" || settings.theme === "dark") document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

// Those fields of a request that say how to sample.
export function samplingOf({ max_tokens: _, chat_template_kwargs: __, ...sampling }) {
  return sampling;
}

// The fields of a request that follow from the settings; an empty one from what the model is read with (`sampling`).
export function requestFields(settings, mode, model) {
  const fields = { ...model.sampling };
  for (const { name } of SAMPLING) if (settings[name] !== null) fields[name] = settings[name];
  const stop = settings.stop.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  if (stop.length) fields.stop = stop;
  if (mode === "text") {
    fields.max_tokens ??= TEXT_TOKENS;
  } else {
    fields.max_tokens ??= Math.max(Math.floor(model.max_model_len / SHARE), 1);
    if (settings.thinking) fields.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  }
  return fields;
}
