// Tables with facets get a choice above them, and can be sorted by a click on a column's title. A table that is wider
// than its column says so, and can be scrolled with the keyboard. Without this script a table is complete and in its
// own order.
(() => {
  "use strict";
  const number = (text) => {
    const found = text.replace("\u2212", "-").match(/-?[\d.,]+/);
    return found ? parseFloat(found[0].replaceAll(",", "")) : NaN;
  };

  // The rows above the first rule are bounds to compare with: they stay on top.
  const movable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const first = rows.findIndex((row) => row.classList.contains("rule"));
    return first < 0 ? rows : rows.slice(first);
  };

  const sortBy = (table, column, header) => {
    const falling = header.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = movable(table);
    const ruled = rows[0] && rows[0].classList.contains("rule");
    const key = (row) => row.cells[column].textContent.trim();
    rows.sort((a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      const order = header.classList.contains("number") ? (isNaN(x) - isNaN(y)) || y - x : key(b).localeCompare(key(a));
      return falling ? order : -order;
    });
    rows.forEach((row, index) => {
      row.classList.toggle("rule", Boolean(ruled) && index === 0);
      table.tBodies[0].append(row);
    });
  };

  const sortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.title = `Sort by ${header.textContent}`;
      button.addEventListener("click", () => sortBy(table, column, header));
      header.replaceChildren(button);
    });
  };

  const filterable = (table) => {
    const form = document.createElement("form");
    form.className = "fusion-filters";
    const rows = [...table.tBodies[0].rows].map((row) => [row, JSON.parse(row.dataset.facets)]);
    const selects = JSON.parse(table.dataset.facets).map((title, index) => {
      const label = document.createElement("label");
      const select = document.createElement("select");
      const words = [...new Set(rows.map(([, facets]) => facets[index]).filter(Boolean))].sort();
      select.append(new Option("all", ""), ...words.map((word) => new Option(word, word)));
      label.append(title, " ", select);
      form.append(label);
      return select;
    });
    form.addEventListener("change", () => {
      for (const [row, facets] of rows) {
        row.hidden = selects.some((select, i) => select.value && facets[i] && facets[i] !== select.value);
      }
    });
    table.parentElement.before(form);
  };

  // A box that scrolls sideways, in a frame that shows on which sides there is more.
  const framed = (box) => {
    const frame = document.createElement("div");
    frame.className = "fusion-scroll";
    const words = document.createElement("p");
    words.className = "fusion-more";
    words.setAttribute("aria-hidden", "true");
    words.textContent = "more columns: scroll sideways \u2194";
    const edges = ["left", "right"].map((side) => {
      const edge = document.createElement("div");
      edge.className = `fusion-edge ${side}`;
      return edge;
    });
    box.replaceWith(frame);
    frame.append(words, box, ...edges);
    const update = () => {
      const hidden = box.scrollWidth - box.clientWidth;
      frame.classList.toggle("wide", hidden > 1);
      frame.classList.toggle("more-left", box.scrollLeft > 1);
      frame.classList.toggle("more-right", hidden - box.scrollLeft > 1);
      if (hidden > 1) {
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", "Table, scrolls sideways");
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    };
    box.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(update).observe(box);
    update();
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const table of document.querySelectorAll("table.fusion-table[data-facets]")) {
      sortable(table);
      filterable(table);
    }
    for (const box of document.querySelectorAll(".fusion-table-wrap")) framed(box);
    for (const table of document.querySelectorAll(".bd-article table:not(.fusion-table)")) {
      const box = document.createElement("div");
      box.className = "fusion-table-wrap";
      table.replaceWith(box);
      box.append(table);
      framed(box);
    }
  });
})();
