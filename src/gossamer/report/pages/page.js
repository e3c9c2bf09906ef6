// A hair line and the nearest values under the pointer. Without it the page loses nothing else.
const units = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]];
const brief = value => { const unit = units.find(([size]) => value >= size); return unit ? +(value / unit[0]).toPrecision(3) + unit[1] : Math.round(value); };
const clock = seconds => {
  const [hours, minutes, rest] = [seconds / 3600 | 0, (seconds / 60 | 0) % 60, seconds % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${rest | 0} s` : `${rest.toFixed(1)} s`;
};
const moment = (curve, at) => `step ${curve.steps[at].toLocaleString("en")} · ${brief(curve.tokens[at])} tokens · ${clock(curve.elapsed[at])}`;
const nearest = (places, wanted) => {
  const distances = places.map(place => Math.abs(place - wanted));
  return distances.indexOf(Math.min(...distances));
};
const line = (...parts) => { const row = document.createElement("div"); row.append(...parts); return row; };
const bold = (text, color) => { const word = document.createElement("b"); word.textContent = text; if (color) word.style.color = color; return word; };

// Let a tip follow the pointer over an element; describe(event, box) gives its lines and where to put it, or nothing.
const follow = (element, describe) => {
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  element.append(tip);
  element.addEventListener("pointerleave", () => { tip.hidden = true; });
  element.addEventListener("pointermove", event => {
    const box = element.getBoundingClientRect();
    const found = describe(event, box);
    tip.hidden = !found;
    if (!found) return;
    tip.replaceChildren(...found.lines);
    // Right of the place, left of it where that has no room, and inside the element in any case.
    const width = tip.offsetWidth;
    const start = found.x + 10 + width <= box.width ? found.x + 10 : found.x - 10 - width;
    tip.style.left = `${Math.max(0, Math.min(start, box.width - width))}px`;
    tip.style.top = `${found.y || 0}px`;
  });
};

for (const plot of document.querySelectorAll(".plot")) {
  const { curves, marks } = JSON.parse(plot.parentElement.querySelector("script").textContent);
  const [left, right, top, bottom, low, high] = JSON.parse(plot.dataset.place);
  const axis = plot.dataset.axis;
  const hair = Object.assign(document.createElement("div"), { className: "hair", hidden: true });
  plot.append(hair);
  plot.addEventListener("pointerleave", () => { hair.hidden = true; });
  follow(plot, (event, box) => {
    const wanted = low + ((event.clientX - box.left) / box.width - left) / (right - left) * (high - low);
    // The curve with a point nearest to the pointer says when it is; the others give their nearest values.
    const near = curves.map(curve => nearest(curve[axis], wanted));
    const first = nearest(curves.map((curve, index) => curve[axis][near[index]]), wanted);
    const [curve, at] = [curves[first], near[first]];
    const x = left + (curve[axis][at] - low) / (high - low) * (right - left);
    const lines = curves.flatMap((other, index) => {
      const value = other.values[near[index]], last = other[axis][other[axis].length - 1];
      if (curves.length > 2 && wanted > last + 0.02 * (high - low)) return [];  // a run that ended before
      const shown = value === null ? "not finite" : value >= 1e4 ? brief(value) : value;
      const away = other.steps[near[index]] === curve.steps[at] ? "" : ` at step ${other.steps[near[index]].toLocaleString("en")}`;
      return [line(`${other.label} `, bold(shown, `var(--${other.color})`), away)];
    });
    const reach = 6 / box.width / (right - left) * (high - low);
    lines.push(...marks.filter(mark => Math.abs(mark[axis] - wanted) < reach).slice(0, 4).map(mark => line(mark.text)));
    hair.hidden = false;
    Object.assign(hair.style, { left: `${100 * x}%`, top: `${100 * top}%`, height: `${100 * (bottom - top)}%` });
    return { lines: [line(moment(curve, at)), ...lines], x: x * box.width };
  });
}

for (const field of document.querySelectorAll(".field")) {
  const map = JSON.parse(field.parentElement.querySelector("script").textContent);
  const axis = field.dataset.axis;
  follow(field, (event, box) => {
    const cells = field.querySelector(".cells").getBoundingClientRect();
    const [x, y] = [(event.clientX - cells.left) / cells.width, (event.clientY - cells.top) / cells.height];
    if (x < 0 || x >= 1 || y < 0 || y >= 1) return null;
    const row = Math.floor(y * map.rows.length);
    const layer = map.rows[row] === "MTP" ? "MTP head" : `layer ${map.rows[row]}`;
    const place = { x: event.clientX - box.left, y: event.clientY - box.top + 14 };
    const shown = value => value === null ? "not measured" : `${value}×`;
    if (!axis) {
      const expert = Math.floor(x * map.values[row].length);
      return { lines: [line(`${layer}, expert ${expert}: `, bold(shown(map.values[row][expert])))], ...place };
    }
    const [low, high] = map.ends[axis];
    const at = nearest(map[axis], low + x * (high - low));
    return { lines: [line(moment(map, at)), line(`${layer}: `, bold(shown(map.values[row][at])))], ...place };
  });
}
