// A figure that is wide for a phone keeps letters that can be read there, and scrolls sideways in a box of its own:
// see .fusion-wide in custom.css. Without this script it shrinks to the width of the page.
(() => {
  "use strict";
  const WIDE = 640; // pixels, as drawn

  const mark = (picture) => {
    if (picture.naturalWidth < WIDE || picture.parentElement.closest(".fusion-wide")) return;
    const box = document.createElement("div");
    box.className = "fusion-wide";
    box.style.setProperty("--drawn", `${picture.naturalWidth}px`);
    picture.replaceWith(box);
    box.append(picture);
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const picture of document.querySelectorAll(".bd-article div.cell_output img, .bd-article figure img")) {
      if (picture.complete) mark(picture);
      else picture.addEventListener("load", () => mark(picture), { once: true });
    }
  });
})();
