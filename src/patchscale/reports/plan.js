"use strict";
// The frontier walks with the budget: line, chosen point, sentence and row follow the slider, and points set it.
(() => {
  const { figures } = JSON.parse(document.getElementById("plan-data").textContent);

  // Numbers as the page's own words write them: three digits.
  const digits = (value) => {
    const [mantissa, power] = value.toExponential(2).split("e").map(Number);
    if (value === 0 || (power >= -4 && power < 3)) return String(Number(value.toPrecision(3)));
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  };
  const grouped = (value) => String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
  const say = (name, value) => {
    if (name.endsWith("_bytes")) return `${digits(value / 2 ** 30)} GiB`;
    if (name.endsWith("_s")) return value < 1 ? `${digits(value * 1e3)} ms` : `${digits(value)} s`;
    if (name.endsWith("_hours")) return value < 1000 ? digits(value) : grouped(value);
    return Number.isInteger(value) && Math.abs(value) < 1e6 ? grouped(value) : digits(value);
  };

  const attach = (figure) => {
    const part = (name) => document.getElementById(`${figure.id}-${name}`);
    const { axis, rows } = figure;
    const svg = document.getElementById(figure.id);
    const points = rows.map((_, index) => part(`point-${index}`));
    const lines = [...part("table").tBodies[0].rows];
    const slider = part("slider");
    let budget = figure.budget;
    let chosen = 0;

    const share = (value) => {
      const inside = Math.min(Math.max(value, axis.low), axis.high);
      return axis.log
        ? Math.log(inside / axis.low) / Math.log(axis.high / axis.low)
        : (inside - axis.low) / (axis.high - axis.low);
    };
    const across = (value) => axis.start + share(value) * (axis.end - axis.start);
    // The slider runs from the cheapest configuration to the end of the axis.
    const first = share(rows[0].price);
    const valueAt = (position) => {
      if (position <= 0) return rows[0].price;
      const there = first + (position / slider.max) * (1 - first);
      return axis.log ? axis.low * (axis.high / axis.low) ** there : axis.low + there * (axis.high - axis.low);
    };
    const positionOf = (value) => Math.round(((share(value) - first) / (1 - first)) * slider.max);

    const read = (index) => {
      part("readout").textContent = rows[index].label;
      points.forEach((point, place) => point.classList.toggle("read", place === index));
    };
    const show = () => {
      chosen = rows.findLastIndex((row) => row.price <= budget * (1 + 1e-12));
      const row = rows[chosen];
      const said = `${say(figure.price, budget)} ${figure.words}`;
      const used = budget === 0 ? 100 : Math.round((100 * row.price) / budget);
      part("choice").textContent =
        `Within ${said} the law expects most of ${row.says} It takes ${row.takes} (${used}%). ${row.more}`.trim();
      part("value").textContent = said;
      slider.setAttribute("aria-valuetext", said);
      const x = across(budget);
      const [line, text] = part("budget").children;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      const left = x > figure.width / 2;
      text.setAttribute("x", x + (left ? -5 : 5));
      text.setAttribute("text-anchor", left ? "end" : "start");
      const at = { x: points[chosen].getAttribute("cx"), y: points[chosen].getAttribute("cy") };
      part("chosen").setAttribute("cx", at.x);
      part("chosen").setAttribute("cy", at.y);
      const whisker = { x1: at.x, x2: at.x, y1: row.ends ? row.ends[0] : at.y, y2: row.ends ? row.ends[1] : at.y };
      for (const [name, value] of Object.entries(whisker)) part("whisker").setAttribute(name, value);
      points.forEach((point, index) => {
        point.classList.toggle("beyond", index > chosen);
        point.setAttribute("tabindex", index === chosen ? "0" : "-1");
        point.setAttribute("aria-pressed", String(index === chosen));
      });
      lines.forEach((line, index) => {
        line.classList.toggle("chosen", index === chosen);
        if (index === chosen) line.setAttribute("aria-current", "true");
        else line.removeAttribute("aria-current");
      });
      reveal();
    };
    // Within its own box: the page stays where it is.
    const reveal = () => {
      const box = part("table").parentElement;
      const line = lines[chosen];
      if (line.offsetTop < box.scrollTop + 60 || line.offsetTop + line.offsetHeight > box.scrollTop + box.clientHeight) {
        box.scrollTop = line.offsetTop - box.clientHeight / 2;
      }
    };
    const set = (value) => {
      budget = value;
      slider.value = positionOf(budget);
      show();
    };

    slider.addEventListener("input", () => {
      budget = valueAt(Number(slider.value));
      show();
      read(chosen);
    });
    part("reset").addEventListener("click", () => set(figure.budget));
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };
    points.forEach((point, index) => {
      point.setAttribute("role", "button");
      point.addEventListener("focus", () => read(index));
      point.addEventListener("keydown", (event) => {
        if (event.key in moves) {
          points[Math.min(Math.max(index + moves[event.key], 0), points.length - 1)].focus();
        } else if (event.key === "Enter" || event.key === " ") {
          set(rows[index].price);
        } else return;
        event.preventDefault();
      });
    });
    // Points can lie close together: the nearest one counts.
    const nearest = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const far = points.map((point) => Math.hypot(point.cx.baseVal.value - at.x, point.cy.baseVal.value - at.y));
      const index = far.indexOf(Math.min(...far));
      return far[index] < 24 ? index : null;
    };
    svg.addEventListener("pointermove", (event) => {
      const index = nearest(event);
      if (index !== null) read(index);
    });
    svg.addEventListener("click", (event) => {
      const index = nearest(event);
      if (index !== null) {
        set(rows[index].price);
        read(index);
      }
    });
    svg.setAttribute("role", "group");
    part("controls").hidden = false;
    slider.value = positionOf(budget);
    show();
    read(chosen);
  };
  figures.forEach(attach);
  document.getElementById("how-to-walk").hidden = false;

  const choice = document.getElementById("which-price");
  if (choice) {
    const pick = () =>
      figures.forEach((figure) => (document.getElementById(`${figure.id}-block`).hidden = figure.price !== choice.value));
    choice.addEventListener("change", pick);
    choice.parentElement.hidden = false;
    pick();
  }
})();
