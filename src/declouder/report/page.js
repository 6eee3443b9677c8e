"use strict";
// Sorting of tables, and the cards of images with their sliders. No library, no request.
(() => {
  const payload = JSON.parse(document.getElementById("payload").textContent);

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(table, head, column));
    });
  }

  function sort(table, head, column) {
    const numeric = head.classList.contains("n");
    const now = head.getAttribute("aria-sort");
    // Numbers are most often looked at from the top, names from A.
    const descending = now ? now === "ascending" : numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent;
      return cell.dataset.v === "" ? null : Number(cell.dataset.v); // "Infinity" is a number
    };
    const compare = (a, b) => {
      // What is missing comes last, whichever the way.
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const order = a.key === b.key ? 0 : numeric ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true });
      return descending ? -order : order;
    };
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row) }));
    table.tBodies[0].append(...rows.sort(compare).map((each) => each.row));
  }

  const place = document.getElementById("cards");
  if (!place) return;
  const byScore = document.getElementById("order-score");
  const byMethod = document.getElementById("order-method");
  const byWay = document.getElementById("order-way");
  const more = document.getElementById("more");
  const shown = document.getElementById("shown");
  const cards = payload.cards.filter((card) => card.layers.length);
  let order = [];
  let count = 0;

  function arrange() {
    const score = Number(byScore.value);
    const method = Number(byMethod.value);
    const sign = (payload.higher[payload.scores[score]] ? 1 : -1) * (byWay.value === "worst" ? 1 : -1);
    const key = (card) => {
      const value = card.scores[method]?.[score] ?? null;
      return value === "inf" ? Infinity : value;
    };
    order = [...cards].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return x === y ? 0 : sign * (x - y);
    });
    place.replaceChildren();
    count = 0;
    showMore();
  }

  function showMore() {
    const next = order.slice(count, count + 10);
    place.append(...next.map(cardOf));
    count += next.length;
    shown.textContent = `${count} of ${order.length} images shown`;
    more.hidden = count >= order.length;
  }

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function cardOf(card) {
    const layers = card.layers;
    const find = (kind) => Math.max(0, layers.findIndex((layer) => layer.kind === kind));
    const under = make("img", { alt: "" });
    const over = make("img", { alt: "", className: "over" });
    const leftName = make("span", { className: "left" });
    const rightName = make("span", { className: "right" });
    const slider = make("div", { className: "slider", tabIndex: 0 }, under, over,
      make("div", { className: "bar" }), leftName, rightName);
    slider.setAttribute("role", "slider");
    slider.setAttribute("aria-label", `${card.name}: where the two pictures meet`);
    slider.setAttribute("aria-valuemin", "0");
    slider.setAttribute("aria-valuemax", "100");

    const chooser = (label) => {
      const select = make("select", {}, ...layers.map((layer, i) => make("option", { value: i, textContent: layer.label })));
      select.setAttribute("aria-label", `${card.name}: ${label}`);
      return select;
    };
    const left = chooser("picture on the left");
    const right = chooser("picture on the right");
    const strip = make("div", { className: "strip" });
    const thumbs = layers.map((layer, i) => {
      const button = make("button", { type: "button", title: `${layer.label} on the right` },
        make("img", { alt: "", src: payload.images[layer.image] }), make("span", { textContent: layer.label }));
      button.addEventListener("click", () => { right.value = i; draw(); });
      return button;
    });
    strip.append(...thumbs);

    function draw() {
      const a = layers[left.value], b = layers[right.value];
      over.src = payload.images[a.image];
      under.src = payload.images[b.image];
      leftName.textContent = left.title = a.label;
      rightName.textContent = right.title = b.label;
      thumbs.forEach((button, i) => button.setAttribute("aria-pressed", String(i === Number(right.value))));
      describe();
    }
    let at = 50;
    function describe() {
      slider.setAttribute("aria-valuenow", String(Math.round(at)));
      slider.setAttribute("aria-valuetext", `${leftName.textContent} on the left ${Math.round(at)} %, ${rightName.textContent} on the right`);
    }
    function moveTo(percent) {
      at = Math.min(100, Math.max(0, percent));
      slider.style.setProperty("--at", `${at}%`);
      describe();
    }
    const follow = (event) => {
      const box = slider.getBoundingClientRect();
      moveTo((100 * (event.clientX - box.left)) / box.width);
    };
    slider.addEventListener("pointerdown", (event) => {
      slider.setPointerCapture(event.pointerId);
      follow(event);
    });
    slider.addEventListener("pointermove", (event) => {
      if (slider.hasPointerCapture(event.pointerId)) follow(event);
    });
    slider.addEventListener("keydown", (event) => {
      const to = {
        ArrowLeft: at - 2, ArrowDown: at - 2, ArrowRight: at + 2, ArrowUp: at + 2,
        PageDown: at - 10, PageUp: at + 10, Home: 0, End: 100,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      moveTo(to);
    });
    left.addEventListener("change", draw);
    right.addEventListener("change", draw);
    left.value = find("cloudy");
    right.value = find("restored");
    moveTo(50);
    draw();

    const several = card.scores.filter((values) => values).length > 1;
    const facts = card.scores.flatMap((values, method) => values === null ? [] : [
      ...(several ? [make("h4", { textContent: payload.methods[method] })] : []),
      make("dl", {}, ...payload.scores.map((name, i) => [name, values[i]])
        .filter(([name, value]) => value !== null && !name.startsWith("paper_"))
        .map(([name, value]) => make("div", {}, make("dt", { textContent: name }),
          make("dd", { textContent: value === "inf" ? "∞" : value.toFixed(payload.digits[name]) })))),
    ]);
    const cover = make("small", { textContent: ` ${Math.round(100 * card.cover)} % cloud` });
    const title = payload.cards.some((other) => other.data !== card.data) ? `${card.data}: ${card.name}` : card.name;
    return make("article", { className: "card" }, make("h3", {}, title, cover), slider,
      make("div", { className: "choose" }, left, right), strip, ...facts);
  }

  for (const select of [byScore, byMethod, byWay]) select.addEventListener("change", arrange);
  more.addEventListener("click", showMore);
  arrange();
})();
