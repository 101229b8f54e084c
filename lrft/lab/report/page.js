"use strict";
// Nothing here is needed to read the page: it hides runs, and says the values below the pointer.
(function () {
  for (const key of document.querySelectorAll(".key")) {
    key.addEventListener("click", function () {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(on));
      for (const part of document.querySelectorAll(".r" + key.dataset.run)) {
        part.classList.toggle("off", !on);
      }
    });
  }
  const NEAR = 15; // pixels; a curve that ends before says nothing
  const tip = document.getElementById("tip");
  const numbers = function (text) { return text.split(",").map(Number); };
  const short = function (value) { return String(Number(value.toPrecision(5))); };

  // The point of a curve that is nearest to a place along the x axis, in pixels.
  const nearest = function (line, x) {
    let best = null;
    for (const pair of line.getAttribute("points").split(" ")) {
      const point = numbers(pair);
      if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
    }
    return best;
  };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const plot = numbers(chart.dataset.plot), xs = numbers(chart.dataset.x), ys = numbers(chart.dataset.y);
    chart.addEventListener("mousemove", function (event) {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
      if (x < plot[0] || x > plot[2]) { tip.hidden = true; return; }
      const found = new Map();
      let at = x;
      for (const line of chart.querySelectorAll("polyline:not(.off)")) {
        const point = nearest(line, x), label = line.dataset.label, known = found.get(label);
        if (point && Math.abs(point[0] - x) < NEAR && (!known || Math.abs(point[0] - x) < Math.abs(known[0] - x))) found.set(label, point);
      }
      const rows = [];
      for (const [label, point] of found) {
        let value = ys[0] + (plot[3] - point[1]) / (plot[3] - plot[1]) * (ys[1] - ys[0]);
        if (chart.dataset.log === "1") value = Math.pow(10, value);
        rows.push(short(value) + "  " + label);
        at = point[0];
      }
      const step = xs[0] + (at - plot[0]) / (plot[2] - plot[0]) * (xs[1] - xs[0]);
      tip.textContent = [chart.dataset.unit + " " + Math.round(step)].concat(rows).join("\n");
      tip.hidden = rows.length === 0;
      tip.style.left = Math.max(0, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)) + "px";
      tip.style.top = event.clientY + 14 + "px";
    });
    chart.addEventListener("mouseleave", function () { tip.hidden = true; });
  }
})();
