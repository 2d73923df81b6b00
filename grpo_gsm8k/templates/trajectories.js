"use strict";
// Pages through the trajectories of the page: unpacks the blocks that it needs, and writes text as text, never as markup.
(() => {
  const PAGE = 20;
  const at = (id) => document.getElementById(id);
  const make = (name, text, css) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (css) made.className = css;
    return made;
  };
  const unpack = async (id) => {
    const packed = Uint8Array.from(atob(at(id).textContent.trim()), (c) => c.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const blocks = new Map();
  const block = (number) => {
    if (!blocks.has(number)) {
      if (blocks.size > 60) blocks.delete(blocks.keys().next().value);
      blocks.set(number, unpack("block-" + number));
    }
    return blocks.get(number);
  };
  let index, found, page = 0, turn = 0;

  function tokenView(tokens) {
    const box = make("div");
    const pre = make("pre", undefined, "tokens");
    const said = make("p", "Choose a token, or move with ← and → here.", "caption said");
    pre.tabIndex = 0;
    said.setAttribute("aria-live", "polite");
    const spans = [];
    const largest = Math.max(1e-12, ...tokens.map((token) => Math.abs(token[4] || 0)));
    for (const [css, text, id, logprob, difference] of tokens) {
      const span = make("i", text === "" ? "▫" : text, css + (logprob < -2.302585 ? " u" : ""));
      if (id !== undefined) {
        span.dataset.said = `token ${id}` + (logprob === undefined ? "" : ` · log-prob ${logprob}`) +
          (difference === undefined ? "" : ` · learner − engine ${difference.toExponential(1)}`);
        if (difference !== undefined) {
          span.style.setProperty("--d", Math.round((45 * Math.abs(difference)) / largest) + "%");
          span.classList.add(difference < 0 ? "less" : "more");
        }
        spans.push(span);
      }
      pre.append(span);
    }
    let chosen = -1;
    const choose = (number) => {
      if (chosen >= 0) spans[chosen].classList.remove("chosen");
      chosen = Math.max(0, Math.min(spans.length - 1, number));
      spans[chosen].classList.add("chosen");
      said.textContent = JSON.stringify(spans[chosen].textContent) + " · " + spans[chosen].dataset.said;
    };
    pre.addEventListener("click", (event) => {
      const number = spans.indexOf(event.target);
      if (number >= 0) choose(number);
    });
    pre.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move === undefined || !spans.length) return;
      choose(chosen < 0 ? 0 : chosen + move);
      event.preventDefault();
    });
    box.append(pre);
    if (spans.length) box.append(said);
    return box;
  }

  function entry(item, source) {
    const box = make("details");
    const summary = make("summary");
    summary.append(make("span", item.verdict, "tag " + item.verdict), " ", make("code", `${item.id}/${item.sample}`), " ");
    summary.append(make("small", source), " ", make("span", item.question.slice(0, 110), "question"));
    box.append(summary);
    box.addEventListener("toggle", () => {
      if (box.childElementCount > 1) return;
      const inside = make("div", undefined, "inside");
      inside.append(make("p", "Question", "caption"), make("pre", item.question), make("p", "Tokens", "caption"));
      inside.append(tokenView(item.tokens), make("p", item.facts.join(" · "), "caption"));
      box.append(inside);
    });
    return box;
  }

  async function show(target, focus) {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.max(0, Math.min(pages - 1, target));
    const mine = ++turn;
    const numbers = found.slice(page * PAGE, (page + 1) * PAGE);
    const items = await Promise.all(numbers.map(async (n) => (await block(Math.floor(n / index.block)))[n % index.block]));
    if (mine !== turn) return;
    const sources = at("from").options;
    at("list").replaceChildren(...items.map((item, k) => entry(item, sources[index.items[numbers[k]][0] + 1].text)));
    at("where").textContent = found.length
      ? `${(page * PAGE + 1).toLocaleString("en")} – ${(page * PAGE + items.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}, page ${page + 1} of ${pages}`
      : "None is like this.";
    for (const [id, off] of [["first", page === 0], ["previous", page === 0], ["next", page === pages - 1], ["last", page === pages - 1]]) {
      at(id).disabled = off;
    }
    if (focus && at("list").firstElementChild) at("list").firstElementChild.firstElementChild.focus();
    document.documentElement.dataset.readyMs ??= String(Math.round(performance.now()));
  }

  function filter() {
    const from = at("from").value, verdict = at("verdict").value, id = at("problem").value.trim();
    found = [];
    index.items.forEach((item, n) => {
      if ((from === "" || item[0] === Number(from)) && (verdict === "" || item[3] === verdict) && item[1].includes(id)) found.push(n);
    });
    return show(0);
  }

  async function begin() {
    index = await unpack("index");
    for (const verdict of [...new Set(index.items.map((item) => item[3]))].sort()) {
      const option = make("option", verdict);
      option.value = verdict;
      at("verdict").append(option);
    }
    for (const id of ["from", "verdict"]) at(id).addEventListener("change", filter);
    at("problem").addEventListener("input", filter);
    at("shade").addEventListener("change", () => at("list").classList.toggle("shaded", at("shade").checked));
    at("first").addEventListener("click", () => show(0));
    at("previous").addEventListener("click", () => show(page - 1));
    at("next").addEventListener("click", () => show(page + 1));
    at("last").addEventListener("click", () => show(Infinity));
    document.addEventListener("keydown", (event) => {
      const move = { n: 1, p: -1 }[event.key];
      if (move === undefined || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
      const focused = document.activeElement;
      if (focused === document.body || at("list").closest("section").contains(focused)) show(page + move, true);
    });
    await filter();
  }
  begin().catch((error) => {
    at("where").textContent = "These trajectories cannot be unpacked here: " + error;
  });
})();
