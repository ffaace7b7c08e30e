// The form: what is asked, of which runs, and when it stops.

const at = (id) => document.getElementById(id);
const form = at("ask");
const state = { models: [], fields: [], labels: [], lang: "", running: null, ownLabels: true };

const chosen = (name) => form.elements[name].value;
const boxes = () => [...at("fields").querySelectorAll("textarea")];
const modelOf = (id) => state.models.find((model) => model.id === id);

function models() {
  const ids = new Set([at("first").value, at("second").value].filter(Boolean));
  return [...ids].map(modelOf);
}

/** Shows an input for each field of the runs that are asked, and keeps what was typed. */
function drawFields() {
  const wanted = [...new Set(models().flatMap((model) => model.layerbridge.fields))];
  if (String(wanted) === String(state.fields)) return;
  const typed = boxes().map((box) => box.value);
  state.fields = wanted;
  at("fields").replaceChildren(...wanted.map((name, k) => {
    const part = make("div", "field");
    const label = make("label", "", name[0].toUpperCase() + name.slice(1).replaceAll("_", " "));
    const box = make("textarea");
    box.id = label.htmlFor = `field-${k}`;
    box.name = name;
    box.rows = wanted.length > 1 ? 2 : 3;
    box.placeholder = "Type or paste a text in any language";
    box.value = typed[k] || "";
    box.addEventListener("input", () => { box.lang = state.lang = ""; }); // whoever types may have changed language
    part.append(label, box);
    return part;
  }));
  turn();
}

function turn() {
  for (const box of boxes()) box.dir = chosen("direction");
  for (const text of document.querySelectorAll(".coloured")) text.dir = chosen("direction");
}

function drawExamples() {
  for (const example of DATA.examples) {
    let next = 0;
    const button = make("button", "chip", example.own);
    button.type = "button";
    button.lang = example.lang;
    button.title = example.name;
    button.setAttribute("aria-label", `${example.own}, ${example.name}`);
    button.addEventListener("click", () => {
      boxes().forEach((box, k) => {
        box.value = example.texts[(next + k) % example.texts.length];
        box.lang = example.lang;
      });
      state.lang = example.lang;
      next += 1;
      at("status").textContent = `A headline in ${example.name}. The button again gives another one.`;
    });
    at("examples").append(button);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Labels

const ownLabels = () => models().map((model) => model.layerbridge.answers).find((answers) => answers.length) || [];

function drawLabels() {
  at("labels").replaceChildren(...state.labels.map((label, k) => {
    const item = make("li", "chip");
    const name = make("bdi", "", label);
    const remove = make("button", "remove", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${label}`);
    remove.addEventListener("click", () => {
      setLabels(state.labels.filter((_, other) => other !== k));
      const left = at("labels").querySelectorAll("button");
      (left[Math.min(k, left.length - 1)] || at("new-label")).focus();
    });
    item.append(name, remove);
    return item;
  }));
  const own = ownLabels();
  at("reset-labels").hidden = !own.length || String(own) === String(state.labels);
}

function setLabels(labels, areOwn = false) {
  state.labels = [...new Set(labels)];
  state.ownLabels = areOwn;
  drawLabels();
}

function addLabel() {
  const label = at("new-label").value.trim();
  at("new-label").value = "";
  if (label) setLabels([...state.labels, label]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Asking

function showKind() {
  at("labels-part").hidden = chosen("kind") !== "labels";
  at("text-part").hidden = chosen("kind") !== "text";
}

/** Follows a change of runs; where one is chosen that the other select has, they change places. */
function follow(select, other) {
  if (select && select.value === other.value) other.value = select.dataset.before;
  if (!at("first").value) at("first").value = state.models.find(({ id }) => id !== at("second").value).id;
  for (const one of [at("first"), at("second")]) one.dataset.before = one.value;
  drawFields();
  if (state.ownLabels) setLabels(ownLabels(), true); else drawLabels();
}

/** Returns what is missing before anything can be asked, in words; empty if nothing. */
function missing(how) {
  const empty = boxes().find((box) => !box.value.trim());
  if (empty) {
    empty.focus();
    return `There is no text in “${empty.labels[0].textContent}”. Type one, or pick an example.`;
  }
  if (how.kind === "labels" && !how.labels.length) {
    at("new-label").focus();
    return "There are no labels to choose from. Add at least one.";
  }
  if (how.kind === "text" && !(Number.isInteger(how.maxTokens) && how.maxTokens > 0)) {
    at("max-tokens").focus();
    return "The number of tokens has to be a whole number from 1 on.";
  }
  return "";
}

async function ask() {
  addLabel();
  const how = { kind: chosen("kind"), labels: state.labels, maxTokens: at("max-tokens").valueAsNumber };
  at("failure").textContent = missing(how);
  if (at("failure").textContent) return;
  stop();
  const running = new AbortController();
  state.running = running;
  at("stop").disabled = false;
  const typed = Object.fromEntries(boxes().map((box) => [box.name, box.value]));
  const looks = { direction: chosen("direction"), lang: state.lang };
  const columns = models().map((model) => new Column(model));
  at("columns").replaceChildren(...columns.map((column) => column.element));
  at("columns").dataset.number = columns.length;
  at("status").textContent = `Asking ${columns.map((column) => column.model.id).join(" and ")} …`;
  const start = performance.now();

  let failed = false;
  const told = (column) => (error) => {
    if (error.name === "AbortError") {
      column.note.textContent = "Stopped.";
      return;
    }
    failed = true;
    column.note.textContent = "";
    column.failure.textContent = error instanceof Failure ? error.message : `The page failed: ${error.message}`;
    if (error.status === 401) askForKey("This is not the server's key any more.");
  };
  const inspected = Promise.all(columns.map((column) => column.inspect(typed, running.signal).catch(told(column))))
    .then(() => { if (!running.signal.aborted) drawAllLayers(columns, looks); });
  await Promise.all([inspected, ...columns.map((column) => column.ask(typed, how, running.signal).catch(told(column)))]);
  if (state.running !== running) return; // something else was asked meanwhile
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  at("status").textContent = running.signal.aborted ? "Stopped." : failed ? "" : `Answered in ${seconds} s.`;
  ended();
}

function ended() {
  state.running = null;
  if (document.activeElement === at("stop")) form.querySelector("[type=submit]").focus();
  at("stop").disabled = true;
}

function stop() {
  if (state.running) state.running.abort();
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

function askForKey(why = "") {
  stop();
  keepKey("");
  form.hidden = true;
  at("forget").hidden = true;
  at("key-form").hidden = false;
  at("key-failure").textContent = why;
  at("key").value = "";
  at("key").focus();
}

async function open() {
  at("failure").textContent = "";
  try {
    state.models = (await json("v1/models")).data;
  } catch (error) {
    if (error.status === 401) askForKey("This is not the server's key.");
    else at("failure").textContent = error.message;
    return;
  }
  at("key-form").hidden = true;
  at("forget").hidden = !key;
  const option = (id, text) => Object.assign(make("option", "", text), { value: id });
  at("first").replaceChildren(...state.models.map(({ id }) => option(id, id)));
  at("second").replaceChildren(option("", "none"), ...state.models.map(({ id }) => option(id, id)));
  at("second").value = state.models.length > 1 ? state.models[1].id : "";
  at("models").hidden = state.models.length < 2;
  form.hidden = false;
  form.elements.kind.value = ownLabels().length ? "labels" : "text";
  follow();
  showKind();
  if (document.activeElement === document.body) boxes()[0].focus();
}

form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("stop").addEventListener("click", stop);
at("first").addEventListener("change", () => follow(at("first"), at("second")));
at("second").addEventListener("change", () => follow(at("second"), at("first")));
for (const radio of form.elements.kind) radio.addEventListener("change", showKind);
for (const radio of form.elements.direction) radio.addEventListener("change", turn);
at("reset-labels").addEventListener("click", () => { setLabels(ownLabels(), true); at("new-label").focus(); });
at("new-label").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.isComposing) {
    event.preventDefault();
    addLabel();
  } else if (event.key === "Backspace" && !at("new-label").value && state.labels.length) {
    setLabels(state.labels.slice(0, -1));
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !form.hidden) {
    event.preventDefault();
    ask();
  } else if (event.key === "Escape") {
    stop();
  }
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    at("key-failure").textContent = "A key has letters, digits and signs of ASCII alone, and no spaces.";
    return;
  }
  keepKey(given);
  open();
});
at("forget").addEventListener("click", () => { at("columns").replaceChildren(); askForKey(); });

if (/Mac|iPhone|iPad/.test(navigator.platform)) form.querySelector("[type=submit] kbd").textContent = "⌘ Enter";
drawExamples();
if (DATA.needsKey && !key) askForKey(); else open();
