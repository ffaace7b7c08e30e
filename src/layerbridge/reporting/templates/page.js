"use strict";
// The page says all it has to say without this: views are shown one at a time, tables sort, tokens speak.
(() => {
  const views = document.querySelector(".views");
  const show = (key) => {
    for (const part of document.querySelectorAll("[data-view]")) part.classList.toggle("off", part.dataset.view !== key);
    for (const input of views.querySelectorAll("input")) input.checked = input.value === key;
  };
  if (views && views.querySelectorAll("input").length > 1) {
    views.hidden = false;
    views.addEventListener("change", (event) => show(event.target.value));
    const follow = (hash) => {
      const part = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
      const view = part && part.closest("[data-view]");
      if (view) { show(view.dataset.view); part.scrollIntoView(); }
    };
    show(views.querySelector("input").value);
    addEventListener("hashchange", () => follow(location.hash));
    // A link that is followed again changes no hash.
    document.querySelector(".contents").addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (link) follow(link.hash);
    });
    follow(location.hash);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = table.querySelectorAll("thead tr:last-child th");
    heads.forEach((head, column) => {
      // No <button>: Chromium does not print it where a table's head is repeated on the next page.
      const button = document.createElement("span");
      button.setAttribute("role", "button");
      button.tabIndex = 0;
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        button.click();
      });
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const value = (row) => row.cells[column].dataset.value;
        const order = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const found = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return down ? -found : found;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  for (const sentence of document.querySelectorAll(".sentence")) {
    const tokens = [...sentence.querySelectorAll(".coloured span[title]")];
    const says = sentence.querySelector(".says");
    if (!tokens.length || !says) continue;
    const rtl = getComputedStyle(sentence.querySelector(".coloured")).direction === "rtl";
    tokens[0].tabIndex = 0;
    tokens.forEach((token, i) => {
      const speak = () => { says.textContent = token.title; };
      token.addEventListener("mouseenter", speak);
      token.addEventListener("click", speak);
      token.addEventListener("focus", speak);
      token.addEventListener("keydown", (event) => {
        const step = { ArrowRight: rtl ? -1 : 1, ArrowLeft: rtl ? 1 : -1 }[event.key];
        const next = step && tokens[i + step];
        if (!next) return;
        event.preventDefault();
        token.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      });
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
